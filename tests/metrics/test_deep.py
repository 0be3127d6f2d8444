from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from megu_dist.config.schema import EvaluateSettings
from megu_dist.data.base import Source
from megu_dist.data.split import scan
from megu_dist.metrics.deep import DeepJob, balanced, run_deep
from megu_dist.metrics.linear_probe import linear_probe, probe
from megu_dist.metrics.relearn import relearn
from megu_dist.metrics.zrf import js_bits, zrf
from megu_dist.models.checkpoint import open_checkpoint

THREE = 3


@pytest.fixture(scope="module")
def job(ray_local: None, digits: Source, digits_model: Path) -> DeepJob:
    checkpoint = open_checkpoint(str(digits_model))
    train, _ = scan(digits, "train", None, columns=("row", "label"))
    test, _ = scan(digits, "test", None, columns=("row", "label"))
    rows, labels = train["row"].to_numpy(), train["label"].to_numpy()
    return DeepJob(
        folder=str(digits_model),
        original=str(digits_model),
        source=digits,
        preprocess=checkpoint.preprocess,
        forget_rows=rows[labels == THREE],
        probe_rows=balanced(rows, labels, 0),
        test_rows=test["row"].to_numpy()[test["label"].to_numpy() == THREE],
        test_split="test",
        fine=False,
        settings=EvaluateSettings(batch_size=256),
        seed=0,
    )


@pytest.fixture(scope="module")
def untrained(digits_model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same architecture with the random weights that the incompetent teacher has at seed 0."""
    folder = tmp_path_factory.mktemp("untrained") / "model"
    checkpoint = open_checkpoint(str(digits_model))
    model = checkpoint.load()
    torch.manual_seed(0)
    fresh = type(model)(model.config)
    from megu_dist.models.checkpoint import export

    export(fresh, fresh.state_dict(), checkpoint.preprocess, folder, None)
    return str(folder)


def test_js_of_equal_and_of_opposite_predictions() -> None:
    logits = torch.tensor([[100.0, 0.0], [1.0, 2.0]])
    assert js_bits(logits, logits).tolist() == pytest.approx([0, 0], abs=1e-9)
    assert js_bits(logits[:1], logits[:1].flip(1)).item() == pytest.approx(1.0)


def test_the_incompetent_teacher_itself_has_zrf_one(job: DeepJob, untrained: str) -> None:
    assert zrf(replace(job, folder=untrained))["zrf"] == pytest.approx(1.0, abs=1e-6)
    assert zrf(job)["zrf"] < 0.9


def test_probe_on_features_that_separate_and_on_constant_ones() -> None:
    y = np.arange(300) % 3
    separate = np.eye(3)[y] + np.random.default_rng(0).normal(scale=0.01, size=(300, 3))
    assert probe(separate[:150], y[:150], separate[150:], y[150:], 0) == 1.0
    constant = np.ones((300, 3))
    assert probe(constant[:150], y[:150], constant[150:], y[150:], 0) == pytest.approx(1 / 3, abs=0.05)


def test_the_retrained_models_features_know_the_class_less(job: DeepJob, digits_retrained: Path) -> None:
    original = linear_probe(job)["probe_forget_acc"]
    retrained = linear_probe(replace(job, folder=str(digits_retrained)))["probe_forget_acc"]
    assert 0.3 < retrained <= original
    assert linear_probe(replace(job, test_rows=job.test_rows[:0])) == {}


def test_relearning(job: DeepJob, digits_retrained: Path, untrained: str) -> None:
    assert relearn(job) == {"relearn_epochs": 0.0, "relearn_reached": 1.0}
    slow = replace(job, settings=replace(job.settings, relearn_lr=1e-9, relearn_epochs=1.0))
    assert relearn(replace(slow, folder=str(digits_retrained))) == {"relearn_epochs": 1.0, "relearn_reached": 0.0}
    fast = replace(job, settings=replace(job.settings, relearn_lr=0.05), folder=str(digits_retrained))
    found = relearn(fast)
    assert found["relearn_reached"] == 1.0
    assert 0 < found["relearn_epochs"] <= 5
    assert relearn(fast) == found


def test_as_ray_tasks_for_all_models(job: DeepJob, digits_retrained: Path) -> None:
    folders = {"original": job.original, "retrained": str(digits_retrained)}
    found = run_deep(["zrf", "linear_probe"], job, folders)
    assert found["original"] == pytest.approx(zrf(job) | linear_probe(job), abs=1e-4)
    assert set(found["retrained"]) == {"zrf", "probe_forget_acc"}


def test_balanced_takes_the_same_number_of_each_class() -> None:
    rows, labels = np.arange(1000), np.repeat([0, 1, 2], [700, 250, 50])
    chosen = balanced(rows, labels, 0)
    assert np.bincount(labels[chosen]).tolist() == [200, 200, 50]
    assert chosen.tolist() == balanced(rows, labels, 0).tolist()
