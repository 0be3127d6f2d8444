"""What every source of files keeps to, on the same 16 training and 7 test images."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from image_samples import CLASSES, folder_source, full_index, parquet, values, webdataset, write_layouts

from megu_dist.data.base import IMAGE_SCHEMA, Source
from megu_dist.data.carve import carve
from megu_dist.data.split import scan
from megu_dist.data.stream import in_this_process
from megu_dist.errors import UserError

TRAIN, TEST = list(range(16)), list(range(100, 107))


def open_again(name: str, root: Path) -> Source:
    if name == "webdataset":
        return webdataset(root / name, root / "cache")
    return {"parquet": parquet, "image_folder": folder_source}[name](root / name)


@pytest.fixture(params=["parquet", "image_folder", "webdataset"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Source:
    write_layouts(tmp_path, TRAIN, TEST)
    return open_again(request.param, tmp_path)


def test_splits_names_and_values(source: Source) -> None:
    assert source.splits == ["train", "test"]
    assert source.class_names == CLASSES
    assert sorted(values(source, "train")) == TRAIN
    assert sorted(values(source, "test")) == TEST
    table = source.gather("train", np.arange(16))
    assert table["label"].to_pylist() == [value % 3 for value in values(source, "train")]
    assert len(set(table["id"].to_pylist())) == 16


def test_gather_keeps_order_and_duplicates(source: Source) -> None:
    held, ids = values(source, "train"), full_index(source, "train")["id"].to_pylist()
    rows = [15, 0, 7, 7, 11, 3, 15]
    assert values(source, "train", rows) == [held[row] for row in rows]
    assert source.gather("train", np.array(rows))["id"].to_pylist() == [ids[row] for row in rows]
    assert source.gather("train", np.array([], dtype=np.int64)).schema.equals(IMAGE_SCHEMA)
    for outside in (16, -1):
        with pytest.raises(IndexError):
            source.gather("train", np.array([outside]))


def test_index_equals_gather_and_locality_names_the_piece(source: Source) -> None:
    rows = np.arange(source.num_rows("train"))
    assert full_index(source, "train").equals(source.gather("train", rows).drop_columns("image"))
    assert source.locality("train", rows).tolist() == Source.locality(source, "train", rows).tolist()
    assert sum(piece.count for piece in source.pieces("train")) == 16


def test_a_pickled_source_reads_the_same(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    held = values(source, "train")
    monkeypatch.chdir("/")
    again = pickle.loads(pickle.dumps(source))
    assert values(again, "train", [12, 1]) == [held[12], held[1]]
    assert again.fingerprint() == source.fingerprint()


def test_the_mean_size_of_an_encoded_image(source: Source) -> None:
    sizes = [len(image) for image in source.gather("train", np.arange(16))["image"].to_pylist()]
    mean = source.encoded_bytes("train")
    assert np.mean(sizes) <= mean <= np.mean(sizes) + 4096  # files hold more than images, tars most of all
    carved = carve(source, 0.0, 0.5)
    assert carved.encoded_bytes("train") == mean
    assert carved.encoded_bytes("validation") == source.encoded_bytes("test")


@pytest.mark.parametrize("name", ["parquet", "image_folder", "webdataset"])
def test_the_fingerprint_follows_the_files(tmp_path: Path, name: str) -> None:
    write_layouts(tmp_path, TRAIN, TEST)
    before = open_again(name, tmp_path).fingerprint()
    assert open_again(name, tmp_path).fingerprint() == before
    changed = next(file for file in sorted((tmp_path / name).rglob("*")) if file.suffix in (".parquet", ".png", ".tar"))
    os.utime(changed, (1, 1))
    assert open_again(name, tmp_path).fingerprint() != before


def test_an_unknown_split_is_refused(source: Source) -> None:
    with pytest.raises(UserError, match=r"no split 'tset'.*'test'"):
        source.num_rows("tset")


def test_rows_are_selected_by_label_and_held_out(source: Source) -> None:
    with in_this_process():
        table, counts = scan(source, "train", lambda index: index["label"].to_numpy() == 1)
        assert counts.tolist() == [6, 5, 5]
        assert sorted(values(source, "train", table["row"].to_pylist())) == [1, 4, 7, 10, 13]
        carved = carve(source, 0.0, 0.5)
        assert carved.splits == ["train", "test", "validation"]
        assert sorted(values(carved, "test") + values(carved, "validation")) == TEST
