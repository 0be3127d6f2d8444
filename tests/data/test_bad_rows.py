"""Images that cannot be decoded: what is left out, what is named, and what stops a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from image_samples import encode, parquet, write_hf

from megu_dist.config.compose import load
from megu_dist.data import stream
from megu_dist.data.bad_rows import BadRows
from megu_dist.data.base import Source
from megu_dist.data.readers import ImageReader, without_bad
from megu_dist.data.stream import in_this_process
from megu_dist.engine.batch import Rows
from megu_dist.errors import UserError, find_user_error
from megu_dist.models.preprocess import Preprocess
from megu_dist.pipeline import Pipeline, evaluate, train
from megu_dist.progress import Reporter

PREPROCESS = Preprocess(4, 4, 1, (0.5,), (0.5,))
CPU = torch.device("cpu")


def damaged(path: Path, count: int, bad: dict[int, bytes]) -> None:
    """Parquet of ``count`` images, some of them replaced."""
    write_hf(path, range(count), rows=7)
    table = pq.read_table(path)
    images = [{"bytes": bad.get(row, encode(row)), "path": None} for row in range(count)]
    pq.write_table(table.set_column(0, table.schema.field(0), pa.array(images, table.schema.field(0).type)), path)


def source_with(folder: Path, fraction: float, forget: tuple[int, ...] = ()) -> Source:
    """40 training images; rows 5 and 23 are damaged."""
    damaged(folder / "d" / "train.parquet", 40, {5: b"no image", 23: encode(23)[:40]})
    source = parquet(folder / "d")
    source.bad_rows = BadRows(folder / "bad", fraction, np.array(forget, dtype=np.int64))
    return source


def test_bad_rows_are_marked_named_and_counted_once(tmp_path: Path) -> None:
    source = source_with(tmp_path, 0.05)
    reader = ImageReader(source, "train", PREPROCESS, keep_id=True, skip_bad=True)
    out = reader({"row": np.array([30, 23, 4, 5])})
    assert out["bad"].tolist() == [False, True, False, True]
    assert out["image"][:, 0, 0, 0].tolist() == [30, 0, 4, 0]
    left = without_bad(out)
    assert left["row"].tolist() == [30, 4]
    assert "bad" not in left
    assert reader({"row": np.array([5, 23])})["bad"].all()
    assert not reader({"row": np.arange(3)})["bad"].any()
    assert source.bad_rows is not None
    assert source.bad_rows.write(tmp_path / "bad_rows.parquet") == 2
    named = pq.read_table(tmp_path / "bad_rows.parquet").to_pylist()
    assert [(one["split"], one["row"], one["id"]) for one in named] == [
        ("train", 5, "train/00000005"),
        ("train", 23, "train/00000023"),
    ]
    assert named[0]["reason"] == "no known image format"


def test_more_than_allowed_stops_with_the_ids_and_the_key(tmp_path: Path) -> None:
    reader = ImageReader(source_with(tmp_path, 0.04), "train", PREPROCESS, skip_bad=True)
    assert reader({"row": np.arange(20)})["bad"].sum() == 1
    with pytest.raises(
        UserError, match=r"2 of 40 train images .*data\.max_bad_fraction=0\.04.*'train/00000005', 'train"
    ):
        reader({"row": np.arange(20, 40)})


def test_none_is_allowed_by_default(tmp_path: Path) -> None:
    source = source_with(tmp_path, 0.0)
    reader = ImageReader(source, "train", PREPROCESS, skip_bad=True)
    assert "bad" not in reader({"row": np.arange(5)})
    with pytest.raises(UserError, match=r"1 of 40 .*data\.max_bad_fraction=0\.0 .*'train/00000005'"):
        reader({"row": np.arange(20)})
    source.bad_rows = None
    with pytest.raises(UserError, match="cannot read image 'train/00000005'"):
        reader({"row": np.arange(20)})


def test_a_forget_image_and_a_strict_reader_never_skip(tmp_path: Path) -> None:
    source = source_with(tmp_path, 0.5, forget=(2, 23))
    reader = ImageReader(source, "train", PREPROCESS, skip_bad=True)
    reader({"row": np.arange(20)})
    with pytest.raises(UserError, match="'train/00000023' is to be forgotten and cannot be read"):
        reader({"row": np.arange(20, 40)})
    with pytest.raises(UserError, match="cannot read image 'train/00000005'"):
        ImageReader(source, "train", PREPROCESS)({"row": np.arange(20)})


def test_a_bad_row_has_weight_zero_on_any_number_of_workers(tmp_path: Path) -> None:
    source = source_with(tmp_path, 0.05)
    reader = ImageReader(source, "train", PREPROCESS, skip_bad=True)
    order = np.random.default_rng(0).permutation(40)
    rows = Rows(lambda epoch: order, lambda epoch: reader, 16, 40)
    with in_this_process():
        parts = {world: [list(rows.steps(0, 6, 0, rank, world, CPU)) for rank in range(world)] for world in (1, 2, 4)}
    for world, ranks in parts.items():
        for step in range(6):
            alone = parts[1][0][step]
            held = np.sort(np.concatenate([part[step].row.numpy() for part in ranks if len(part[step])]))
            assert np.array_equal(held, np.sort(alone.row.numpy())), world
            assert {part[step].total for part in ranks} == {alone.total}
    seen = torch.cat([part.row for part in parts[1][0]])
    assert sorted(seen.tolist()) == [row for row in range(40) if row not in (5, 23)]
    assert sum(part.total for part in parts[1][0]) == 40


def test_workers_share_what_they_found(tmp_path: Path, ray_local: None) -> None:
    source = source_with(tmp_path, 0.05)
    reader = ImageReader(source, "train", PREPROCESS, skip_bad=True)
    marks = np.concatenate([block["bad"] for block in stream.blocks(np.arange(40), reader, 8)])
    assert np.flatnonzero(marks).tolist() == [5, 23]
    assert source.bad_rows is not None
    source.bad_rows = replace(source.bad_rows, fraction=0.02)
    with pytest.raises(Exception) as caught:  # noqa: PT011  (of Ray)
        list(stream.blocks(np.arange(8), reader, 4))
    told = find_user_error(caught.value)
    assert "2 of 40 train images cannot be read" in str(told)  # one of them another task's


def settings_words(folder: Path, fraction: float) -> list[str]:
    return [
        "data=parquet", f"data.path={folder / 'data'}", f"data.max_bad_fraction={fraction}", f"run.dir={folder}",
        "model.width=4", "model.stage_blocks=[1]", "model.num_channels=1", "model.image_size=8", "engine=ddp",
        "method=finetune", "train.epochs=2", "train.batch_size=16", "train.precision=fp32", "evaluate.num_actors=1",
        "forget.scenario=ids", f"forget.ids_file={folder / 'ids'}",
    ]  # fmt: skip


def test_a_run_leaves_bad_rows_out_and_names_them(tmp_path: Path) -> None:
    junk = b"\x89PNG junk"
    (tmp_path / "ids").write_text("train/00000002\ntrain/00000040\n")
    damaged(tmp_path / "data" / "train.parquet", 60, {7: junk, 31: junk})
    damaged(tmp_path / "data" / "test.parquet", 30, {3: junk})

    def pipeline(fraction: float) -> Pipeline:
        (tmp_path / "run").mkdir(exist_ok=True)
        return Pipeline(
            load(settings_words(tmp_path, fraction), ["train=scratch"]).settings, tmp_path / "run", Reporter()
        )

    with in_this_process():
        with pytest.raises(UserError, match=r"of 60 train images cannot be read.*data\.max_bad_fraction=0\.01"):
            train(pipeline(0.01))
        assert pq.read_table(tmp_path / "run" / "split" / "bad_rows.parquet").num_rows >= 1
        train(pipeline(0.04))
        scored = pipeline(0.04)
        model = scored.open_model(str(tmp_path / "run" / "model"), "model.path")
        evaluate(scored, {"original": model})
    named = pq.read_table(tmp_path / "run" / "split" / "bad_rows.parquet").to_pylist()
    assert [(one["split"], one["row"]) for one in named] == [("test", 3), ("train", 7), ("train", 31)]
    parts = pq.read_table(tmp_path / "run" / "predictions" / "original.parquet")
    ids = parts["id"].to_pylist()
    assert len(ids) == len(set(ids)) == 60 + 30 - 3
    assert not {one["id"] for one in named} & set(ids)
