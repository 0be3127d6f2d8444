"""Held-out splits: disjoint, complete, the same every time, and faithful to the base source."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from image_samples import decode, write_hf

from megu_dist.data.base import Source
from megu_dist.data.carve import carve
from megu_dist.data.sources.image_folder import ImageFolderSettings, ImageFolderSource
from megu_dist.data.sources.parquet import ParquetSettings, ParquetSource
from megu_dist.errors import UserError


@pytest.fixture
def train_only(tmp_path: Path) -> ParquetSource:
    write_hf(tmp_path / "a.parquet", range(100), rows=16)
    write_hf(tmp_path / "b.parquet", range(100, 150), rows=16)
    return ParquetSource(ParquetSettings(name="parquet", path=str(tmp_path)))


def rows_of(source: Source, split: str) -> pa.Table:
    table = source.gather(split, np.arange(source.num_rows(split)))
    assert table["row"].to_pylist() == list(range(source.num_rows(split)))
    return table


def ids(source: Source, split: str) -> list[str]:
    found: list[str] = rows_of(source, split)["id"].to_pylist()
    return found


def test_splits_are_disjoint_and_complete(train_only: ParquetSource) -> None:
    source = carve(train_only, 0.2, 0.3)
    assert source.splits == ["train", "test", "validation"]
    assert [source.num_rows(split) for split in source.splits] == [120, 21, 9]
    found = [ids(source, split) for split in source.splits]
    assert sorted(itertools.chain(*found)) == ids(train_only, "train")
    assert all(part == sorted(part) for part in found)  # base order is kept


def test_ids_labels_and_images_stay_together(train_only: ParquetSource) -> None:
    source = carve(train_only, 0.2, 0.3)
    for split in source.splits:
        for row in rows_of(source, split).to_pylist():
            value = decode(row["image"])
            assert row["id"] == f"train/{value:08d}"
            assert row["label"] == value % 3


def test_index_follows_pieces_and_equals_gather(train_only: ParquetSource) -> None:
    source = carve(train_only, 0.2, 0.3)
    for split in source.splits:
        pieces = source.pieces(split)
        assert all(piece.count > 0 for piece in pieces)
        assert sum(piece.count for piece in pieces) == source.num_rows(split)
        index = pa.concat_tables([source.index(piece) for piece in pieces])
        assert index.equals(rows_of(source, split).drop_columns("image"))
        base_rows = np.array([int(name.split("/")[1]) for name in ids(source, split)])
        base_pieces = train_only.locality("train", base_rows)
        locality = source.locality(split, np.arange(source.num_rows(split)))
        # Rows are together in a piece exactly when they are in one row group.
        assert (np.diff(locality) > 0).tolist() == (np.diff(base_pieces) > 0).tolist()


def test_gather_keeps_order_and_duplicates(train_only: ParquetSource) -> None:
    source = carve(train_only, 0.2, 0.0)
    everything = ids(source, "test")
    table = source.gather("test", np.array([7, 0, 7, 29]))
    assert table["row"].to_pylist() == [7, 0, 7, 29]
    assert table["id"].to_pylist() == [everything[row] for row in (7, 0, 7, 29)]
    with pytest.raises(IndexError):
        source.gather("test", np.array([30]))
    with pytest.raises(IndexError):
        source.gather("train", np.array([-1]))


def test_same_rows_every_time_and_after_pickling(train_only: ParquetSource) -> None:
    first, second = carve(train_only, 0.2, 0.3), carve(train_only, 0.2, 0.3)
    state = pickle.dumps(first)
    assert len(state) < 10_000
    for split in first.splits:
        assert ids(first, split) == ids(second, split) == ids(pickle.loads(state), split)
    assert first.fingerprint() == second.fingerprint()


def test_test_rows_do_not_depend_on_the_validation_share_but_the_fingerprint_does(train_only: ParquetSource) -> None:
    plain, shared = carve(train_only, 0.2, 0.0), carve(train_only, 0.2, 0.5)
    assert ids(plain, "train") == ids(shared, "train")
    assert sorted(ids(shared, "test") + ids(shared, "validation")) == ids(plain, "test")
    prints = {train_only.fingerprint(), plain.fingerprint(), shared.fingerprint()}
    assert len(prints) == 3


def test_existing_test_split_gives_validation_only(hf_folder: Path) -> None:
    base = ParquetSource(ParquetSettings(name="parquet", path=str(hf_folder)))
    assert carve(base, 0.5, 0.0) is base  # it has test images already
    source = carve(base, 0.5, 0.4)
    assert ids(source, "train") == ids(base, "train")
    assert (source.num_rows("test"), source.num_rows("validation")) == (4, 3)
    assert sorted(ids(source, "test") + ids(source, "validation")) == ids(base, "test")


def test_existing_validation_split_is_kept(hf_folder: Path) -> None:
    write_hf(hf_folder / "validation-0.parquet", range(200, 203))
    base = ParquetSource(ParquetSettings(name="parquet", path=str(hf_folder)))
    assert carve(base, 0.0, 0.5) is base


def test_image_folder(tmp_path: Path) -> None:
    for number in range(20):
        path = tmp_path / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes([number]))
    base = ImageFolderSource(ImageFolderSettings(name="image_folder", path=str(tmp_path)))
    source = carve(base, 0.25, 0.0)
    assert (source.num_rows("train"), source.num_rows("test")) == (15, 5)
    assert sorted(ids(source, "train") + ids(source, "test")) == ids(base, "train")


def test_small_splits_and_bad_shares(tmp_path: Path, train_only: ParquetSource) -> None:
    assert carve(train_only, 0.001, 0.0).num_rows("test") == 1
    assert carve(train_only, 0.999, 0.0).num_rows("train") == 1
    with pytest.raises(UserError, match=r"data\.test_fraction=1\.5"):
        carve(train_only, 1.5, 0.0)
    with pytest.raises(UserError, match=r"data\.validation_fraction=-0\.1"):
        carve(train_only, 0.0, -0.1)
    with pytest.raises(UserError, match="1 rows are too few"):
        carve(train_only, 0.001, 0.5)
