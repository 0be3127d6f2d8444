"""What was forgotten before is never retained, nor a label that images are moved to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from megu_dist.config.compose import load
from megu_dist.config.registry import lookup
from megu_dist.data.base import Source
from megu_dist.engine.batch import Part
from megu_dist.engine.context import Context
from megu_dist.engine.worker import TrainJob, _rows
from megu_dist.methods.losses import random_labels


def test_retained_rows(digits: Source) -> None:
    settings = load(["data=digits", "train.retain_per_epoch=null"]).settings
    preprocess: Any = lookup("model", settings.model.name).target(settings.model).preprocess()
    forget, gone = np.arange(0, 50), np.arange(40, 90)
    job = TrainJob(
        settings, digits, digits.class_names, preprocess, forget, 0, "", "", None, None, already_rows=gone
    )  # fmt: skip
    forget_rows, retain = _rows(job, False)
    total = digits.num_rows("train")
    assert np.sort(retain.rows(0)).tolist() == list(range(90, total))
    assert retain.count == retain.population == total - 90
    assert np.sort(forget_rows.rows(0)).tolist() == forget.tolist()


def test_random_labels(tmp_path: Path) -> None:
    settings = load(["method=random_label"]).settings
    context = Context(
        settings, None, None, torch.device("cpu"), 0, 1, 0, tmp_path, forget_classes=(0,), already_classes=(2, 3)
    )  # type: ignore[arg-type]
    part = Part(300, {"row": torch.arange(300), "label": torch.arange(300) % 2})
    drawn = random_labels(part, context, 6, 0)
    assert set(drawn.tolist()) == {1, 4, 5}
    assert not (drawn == part.label).any()
