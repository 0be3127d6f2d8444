"""Predictions on disk: what is written is read again, part by part, and metrics hold little of it in memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from megu_dist.metrics import base, predict
from megu_dist.metrics.base import PARTS, Parts


def write(file: Path, rows: int, classes: int, seed: int = 0, blocks: int = 5) -> dict[str, np.ndarray]:
    """A model's file as the evaluate stage writes it, its rows in no order of parts."""
    rng = np.random.default_rng(seed)
    probs = rng.random((rows, classes), dtype=np.float32)
    probs /= probs.sum(1, keepdims=True)
    images = np.random.default_rng(9)  # the same for all models
    part, label = images.integers(0, 4, rows), images.integers(0, classes, rows)
    part[np.isin(label, [0, 1]) & (part == PARTS.index("retain_test"))] = PARTS.index("forget_test")
    out = predict._File(file)
    for block in np.array_split(np.arange(rows), blocks):
        own = probs[block]
        loss = -np.log(own[np.arange(len(block)), label[block]])
        ids = np.array([str(row) for row in block], object)
        found = {"id": ids, "part": part[block], "label": label[block], "m/probs": own, "m/loss": loss}
        found |= {"m/prediction": own.argmax(1), "m/entropy": -(own * np.log(own)).sum(1)}
        out.add(predict._table("m", found))
    out.close()
    return {"probs": probs, "part": part, "label": label}


def test_what_is_written_is_read_by_part(tmp_path: Path) -> None:
    wrote = write(tmp_path / "m.parquet", 101, 7)
    found = predict.read(tmp_path / "m.parquet")
    assert list(tmp_path.iterdir()) == [tmp_path / "m.parquet"]  # nothing is left beside it
    for name, part in found.items():
        mask = wrote["part"] == PARTS.index(name)
        assert np.array_equal(part.probs, wrote["probs"][mask])
        assert np.array_equal(part.label, wrote["label"][mask])
        assert np.array_equal(part.prediction, wrote["probs"][mask].argmax(1))
    assert sum(map(len, found.values())) == 101


def test_metrics_do_not_depend_on_how_many_rows_are_taken_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models: dict[str, Parts] = {}
    for seed, name in enumerate(("unlearned", "retrained")):
        write(tmp_path / f"{name}.parquet", 900, 6, seed)
        models[name] = predict.read(tmp_path / f"{name}.parquet")
    whole = base.compute(models, 0)
    monkeypatch.setattr(base, "CHUNK_BYTES", 100)
    by_few = base.compute(models, 0)
    assert by_few[0] == whole[0]
    assert whole[1] is not None
    assert by_few[1] == pytest.approx(whole[1], rel=1e-12)


def test_memory_does_not_grow_with_the_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, classes = 4000, 2000
    monkeypatch.setattr(base, "CHUNK_BYTES", 1 << 20)
    for seed, name in enumerate(("unlearned", "retrained")):
        write(tmp_path / f"{name}.parquet", rows, classes, seed, blocks=40)
    base.compute({"original": predict.read(tmp_path / "retrained.parquet")}, 0)  # imports what metrics need
    tracemalloc.start()
    try:
        base.compute({name: predict.read(tmp_path / f"{name}.parquet") for name in ("unlearned", "retrained")}, 0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * rows * classes / 2  # half of one model's probabilities
