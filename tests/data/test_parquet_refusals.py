"""Parquet files: what is refused, and what the message offers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_samples import CLASSES, encode, full_index, parquet, values, write_hf

from megu_dist.errors import UserError


@pytest.mark.parametrize(
    ("key", "asked", "offered"), [("image_column", "imgs", "img"), ("label_column", "lable", "label")]
)
def test_missing_column_names_file_and_nearest(hf_folder: Path, key: str, asked: str, offered: str) -> None:
    with pytest.raises(UserError, match=rf"data\.{key}: no column '{asked}' in .*train-00000.*'{offered}'"):
        parquet(hf_folder, **{key: asked})


def test_no_image_column(tmp_path: Path) -> None:
    pq.write_table(pa.table({"pixels": [[1, 2]], "label": [0]}), tmp_path / "data.parquet")
    with pytest.raises(UserError, match=r"no image column.*data\.parquet.*data\.image_column.*pixels"):
        parquet(tmp_path)


def test_several_unnamed_image_columns_must_be_chosen(tmp_path: Path) -> None:
    table = pa.table({"left": [encode(1)], "right": [encode(2)], "label": [0]})
    pq.write_table(table, tmp_path / "data.parquet")
    with pytest.raises(UserError, match=r"data\.image_column to one of left, right"):
        parquet(tmp_path)
    assert values(parquet(tmp_path, image_column="right"), "train") == [2]


def test_files_that_disagree(tmp_path: Path) -> None:
    write_hf(tmp_path / "a.parquet", range(3))
    table = pq.read_table(tmp_path / "a.parquet")
    pq.write_table(table.set_column(1, "label", table["label"].cast(pa.int32())), tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"'label' is int32 in .*b\.parquet but int64 in .*a\.parquet"):
        parquet(tmp_path)
    write_hf(tmp_path / "b.parquet", range(3), names=["dog", "cat", "frog"])
    with pytest.raises(UserError, match="class names of column 'label' differ"):
        parquet(tmp_path)


def test_label_outside_the_classes_names_row_and_file(tmp_path: Path) -> None:
    write_hf(tmp_path / "a.parquet", range(5))
    write_hf(tmp_path / "b.parquet", range(9), names=CLASSES)
    broken = pq.read_table(tmp_path / "b.parquet")
    broken = broken.set_column(1, broken.schema.field("label"), pa.array([0, 1, 2, 0, 1, 2, 7, 1, 2]))
    pq.write_table(broken, tmp_path / "b.parquet", row_group_size=4)
    source = parquet(tmp_path)
    with pytest.raises(UserError, match=r"row 6 of .*b\.parquet: label 7 .*3 classes \(labels are 0 … 2\)"):
        source.gather("train", np.array([11]))
    assert source.gather("train", np.array([10]))["label"].to_pylist() == [2]
    with pytest.raises(UserError, match="label 7"):
        full_index(source, "train")


def test_integer_labels_that_are_ids(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [encode(0)], "label": [10**12]}), tmp_path / "data.parquet")
    with pytest.raises(UserError, match=r"no class label: set data\.label_column"):
        parquet(tmp_path)


def test_missing_path_names_siblings(hf_folder: Path) -> None:
    with pytest.raises(UserError, match=r"data\.path: .*hg does not exist.*'hf'"):
        parquet(hf_folder.parent / "hg")
    with pytest.raises(UserError, match=r"'test-00000-of-00001\.parquet'"):
        parquet(hf_folder / "test-0000-of-00001.parquet")
    (hf_folder.parent / "other").mkdir()
    (hf_folder.parent / "other" / "notes.txt").write_text("")
    with pytest.raises(UserError, match=r"no \.parquet.* it holds notes\.txt"):
        parquet(hf_folder.parent / "other")
    with pytest.raises(UserError, match=r"cannot open nosuch://x"):
        parquet("nosuch://x/y")


def test_damaged_file(hf_folder: Path) -> None:
    (hf_folder / "train-00001-of-00002.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(UserError, match=r"cannot read .*train-00001-of-00002\.parquet as Parquet"):
        parquet(hf_folder)
