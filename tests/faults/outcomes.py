"""What runs come to, and what they should have come to."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from megu_dist import pipeline as stages
from megu_dist.config.compose import load
from megu_dist.data.stream import in_this_process
from megu_dist.progress import Reporter


def trained_here(words: list[str], folder: Path) -> Path:
    """``megu train WORDS`` in this process, without Ray and with one worker; the run folder."""
    settings = load(words, ["train=scratch", "train.num_workers=1", "train.min_workers=null"]).settings
    with in_this_process():
        pipeline = stages.Pipeline(settings, folder, Reporter(io.StringIO()))
        with pipeline.store.locked():
            stages.train(pipeline)
    return folder


def record(folder: Path, stage: str) -> dict[str, Any]:
    """What is known of a finished stage."""
    found: dict[str, Any] = json.loads((folder / ".stages" / f"{stage}.json").read_text())
    return found


def assert_close(found: Any, expected: Any, where: str = "") -> None:
    """Metrics of runs whose sums were added in another order: rates and losses within 0.03, the rest equal."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_close(found[key], value, f"{where}.{key}")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=0.03, rel=0.03), where
    else:
        assert found == expected, where


def numbers(folder: Path) -> dict[str, Any]:
    """What must not depend on a disturbance: ``metrics.json`` without times, and without how often an oracle was asked."""
    found = json.loads((folder / "metrics.json").read_text())
    for name in ("seconds", "environment", "oracle"):
        del found[name]
    found.get("versus_retrained", {}).pop("seconds_ratio", None)
    return found
