"""The split stage, on Ray Data and in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_samples import parquet, write_hf

from megu_dist.config.schema import ForgetSettings
from megu_dist.data.base import Source
from megu_dist.data.split import Gone, Split, make_split
from megu_dist.errors import UserError

pytestmark = pytest.mark.usefixtures("ray_local")


@pytest.fixture(autouse=True, params=["on Ray Data", "here"])
def where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "on Ray Data":
        monkeypatch.setattr("megu_dist.data.split.SMALL", 0)


def split(
    source: Source, classes: list[int] | None = None, seed: int = 0, gone: Gone | None = None, **request: Any
) -> Split:
    done: list[int] = []
    found = make_split(source, ForgetSettings(**request), classes or [], seed, done.append, gone or Gone())
    assert done[-1] == source.num_rows("train")
    return found


def test_classes(digits: Source) -> None:
    one, two = split(digits, [3]), split(digits, [3, 8])
    assert one.labels == [3]
    assert two.labels == [3, 8]
    labels = np.concatenate([digits.index(piece)["label"].to_numpy() for piece in digits.pieces("train")])
    assert one.rows.tolist() == np.flatnonzero(labels == 3).tolist()
    assert two.rows.tolist() == np.flatnonzero((labels == 3) | (labels == 8)).tolist()
    assert one.class_counts.tolist() == np.bincount(labels).tolist()
    assert one.forget["id"].to_pylist()[0] == f"train/{one.rows[0]:08d}"


def test_random_images(digits: Source) -> None:
    total = digits.num_rows("train")
    some = split(digits, scenario="random", fraction=0.1)
    assert len(some.rows) == round(0.1 * total)
    shares = np.bincount(some.forget["label"].to_numpy(), minlength=10) / some.class_counts
    assert np.abs(shares - 0.1).max() < 0.01
    assert split(digits, scenario="random", fraction=0.1).forget.equals(some.forget)
    assert not split(digits, seed=1, scenario="random", fraction=0.1).forget.equals(some.forget)
    few = split(digits, scenario="random", count=7, stratified=False)
    assert len(few.rows) == 7
    index = {i: (r, c) for r, i, c in zip(*(some.forget[n].to_pylist() for n in ("row", "id", "label")), strict=True)}
    for row, (number, label) in index.items():
        assert row == f"train/{number:08d}"
        assert 0 <= label < 10


def test_ids(digits: Source, tmp_path: Path) -> None:
    file = tmp_path / "ids.txt"
    file.write_text("train/00001400\ntrain/00000002\ntrain/00000002\n# end\n")
    assert split(digits, scenario="ids", ids_file=str(file)).rows.tolist() == [2, 1400]
    file.write_text("train/00000002\ntrain/0000003\n")
    with pytest.raises(UserError, match=r"1 of 2 ids are not in the training data.*'train/0000003'.*did you mean"):
        split(digits, scenario="ids", ids_file=str(file))
    file.write_text("".join(f"train/{row:08d}\n" for row in range(digits.num_rows("train"))))
    with pytest.raises(UserError, match="whole training set"):
        split(digits, scenario="ids", ids_file=str(file))


def test_a_class_without_images(tmp_path: Path) -> None:
    write_hf(tmp_path / "train.parquet", range(6), names=["cat", "dog", "frog", "deer"])
    with pytest.raises(UserError, match=r"forget set is empty: no training image of 'deer' among 6"):
        make_split(parquet(tmp_path / "train.parquet"), ForgetSettings(), [3], 0, lambda done: None)


def labels_of(source: Source) -> np.ndarray:
    return np.concatenate([source.index(piece)["label"].to_numpy() for piece in source.pieces("train")])


def test_what_was_forgotten_before(digits: Source, tmp_path: Path) -> None:
    """It is neither forgotten again nor retained, and need not be in the data any more."""
    labels = labels_of(digits)
    threes, eights = np.flatnonzero(labels == 3), np.flatnonzero(labels == 8)
    gone = Gone((8,), frozenset([f"train/{threes[0]:08d}", "train/removed-since"]))
    found = split(digits, [3], gone=gone)
    assert found.rows.tolist() == threes[1:].tolist()
    assert found.already["row"].to_pylist() == sorted([threes[0], *eights])
    assert set(found.already["label"].to_pylist()) == {3, 8}
    assert found.left_out.tolist() == sorted([*threes, *eights])
    assert int(found.class_counts.sum()) == digits.num_rows("train")
    some = split(digits, gone=gone, scenario="random", count=700)
    assert len(some.rows) == 700
    assert not np.isin(some.rows, found.already["row"].to_numpy()).any()
    file = tmp_path / "ids.txt"
    file.write_text(f"train/{threes[1]:08d}\ntrain/{eights[1]:08d}\n")
    with pytest.raises(UserError, match=f"'train/{eights[1]:08d}' was forgotten before"):
        split(digits, gone=gone, scenario="ids", ids_file=str(file))
    with pytest.raises(UserError, match="the rest of the training set"):
        split(digits, [3], gone=Gone(tuple(label for label in range(10) if label != 3)))
