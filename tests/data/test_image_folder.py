"""Image folders: layouts, ids, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import fsspec
import numpy as np
import pytest
from image_samples import folder_source, full_index, values, write_images

from megu_dist.errors import UserError


def test_image_folder_with_splits(tmp_path: Path) -> None:
    names = "train/dog/b.png train/cat/a.JPG train/cat/more/c.png test/dog/d.png val/cat/e.png train/cover.png"
    write_images(tmp_path, names + " train/cat/notes.txt")
    source = folder_source(tmp_path)
    assert source.class_names == ["cat", "dog"]
    assert source.splits == ["train", "test", "validation"]
    table = full_index(source, "train")
    assert table["id"].to_pylist() == ["train/cat/a.JPG", "train/cat/more/c.png", "train/dog/b.png"]
    assert table["label"].to_pylist() == [0, 0, 1]
    assert values(source, "train", [2, 0, 2]) == [0, 1, 0]
    assert table.equals(source.gather("train", np.arange(3)).drop_columns("image"))
    assert values(source, "test") == [3]


def test_flat_image_folder_with_test_path(tmp_path: Path) -> None:
    write_images(tmp_path / "a", "dog/1.png cat/1.png ox/1.png")
    write_images(tmp_path / "b", "ox/1.png cat/1.png")
    source = folder_source(tmp_path / "a", test_path=str(tmp_path / "b"))
    assert source.class_names == ["cat", "dog", "ox"]
    ids = [full_index(source, split)["id"].to_pylist() for split in source.splits]
    assert ids == [["cat/1.png", "dog/1.png", "ox/1.png"], ["test/cat/1.png", "test/ox/1.png"]]
    assert full_index(source, "test")["label"].to_pylist() == [0, 2]
    assert folder_source(tmp_path / "a").splits == ["train"]


def test_image_folder_refusals(tmp_path: Path) -> None:
    write_images(tmp_path / "a", "train/dog/1.png train/cat/1.png test/dgo/1.png")
    with pytest.raises(UserError, match=r"'test/dgo'.*'dog'"):
        folder_source(tmp_path / "a")
    write_images(tmp_path / "b", "1.png 2.png")
    with pytest.raises(UserError, match="no class folders"):
        folder_source(tmp_path / "b")
    write_images(tmp_path / "c", "cat/1.png")
    with pytest.raises(UserError, match=r"no \.webp files in .*it holds cat"):
        folder_source(tmp_path / "c", extensions=["webp"])
    source = folder_source(tmp_path / "c")
    (tmp_path / "c" / "cat" / "1.png").unlink()
    with pytest.raises(UserError, match=r"cannot read image .*cat/1\.png"):
        source.gather("train", np.array([0]))


def test_image_folder_pieces_and_pickle(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for number in range(2500):
        memory.pipe(f"/folder/class{number % 2}/{number:06d}.png", bytes([number % 256]))
    source = folder_source("memory://folder")
    assert [(piece.first, piece.count) for piece in source.pieces("train")] == [(0, 1024), (1024, 1024), (2048, 452)]
    assert source.locality("train", np.array([1023, 1024, 2499])).tolist() == [0, 1, 2]
    state = pickle.dumps(source)
    assert len(state) < 30_000
    table = pickle.loads(state).gather("train", np.array([1250, 0]))
    assert table["id"].to_pylist() == ["class1/000001.png", "class0/000000.png"]
    assert table["image"].to_pylist() == [b"\x01", b"\x00"]
