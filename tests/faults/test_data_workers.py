"""SIGKILL of the tasks that read: of a split's index, and of images in each stage."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import disturb
import numpy as np
import outcomes
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from megu_dist.config.compose import load
from megu_dist.data.open import open_source
from megu_dist.data.split import SMALL, make_split
from megu_dist.data.stream import in_this_process

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
CLASSES = ("red", "green", "blue")
PLAIN = ["train.precision=fp32", "train.threads=1", "engine=ddp"]
NET = ["model.width=8", "model.stage_blocks=[1]", "model.num_channels=3", "model.image_size=16"]


@pytest.fixture(scope="module")
def large_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images that take a while to decode, so that reading tasks can be seen at work."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(90):
        label, part = number % 3, "train" if number < 72 else "test"
        image = rng.integers(0, 60, (1000, 1000, 3))  # noise: a small file would be read without a task
        image[..., label] += 150
        folder = root / part / CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{number}.png", compress_level=1)
    return root


def test_a_reading_task_is_killed_in_every_stage(large_images: Path, tmp_path: Path) -> None:
    data = ["data=image_folder", f"data.path={large_images}"]
    model = outcomes.trained_here([*data, *NET, *PLAIN, "train.epochs=2"], tmp_path / "original") / "model"
    words = [
        "unlearn",
        *data,
        *PLAIN,
        f"model.path={model}",
        "forget.classes=[red]",
        "oracle=uniform",
        "train.epochs=3",
    ]
    with disturb.command(words, tmp_path, "left-alone") as run:
        expected = run.finish()
    with disturb.command(words, tmp_path, "run") as run:
        ready: dict[str, Callable[[], Any]] = {
            "perturb": (run.folder / "transition.json").exists,
            "finetune": lambda: list(run.folder.glob("checkpoints/*/*/epoch-00000*/rank-0.json")),
            "evaluate": (run.folder / "history.jsonl").exists,
        }
        for moment in ready.values():
            disturb.kill_one(run, "reader", moment)
        assert run.finish() == expected
    disturb.gone(run.mark)
    assert not disturb.leftovers(tmp_path, run.folder)


def test_a_scanning_task_is_killed(tmp_path: Path) -> None:
    rows, per_file = SMALL + 20_000, 10_000
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(buffer, "PNG")
    table = pa.table({"image": [buffer.getvalue()] * per_file, "label": np.arange(per_file) % 10})
    files = tmp_path / "data"
    files.mkdir()
    pq.write_table(table, tmp_path / "one", row_group_size=50)  # so many pieces that the scan takes seconds
    pq.write_table(table.slice(0, 100), files / "test.parquet")
    for number in range(rows // per_file):
        os.link(tmp_path / "one", files / f"train-{number:04d}.parquet")
    # By its address: files of this machine would be scanned without a task.
    words = ["data=parquet", f"data.path={files.as_uri()}", "forget.scenario=random", "forget.fraction=0.01"]
    settings = load(words, ["train=scratch"]).settings
    source = open_source(settings.data)
    with in_this_process():
        expected = make_split(source, settings.forget, [], settings.seed.unlearn, lambda _: None)

    quick = [*NET, *PLAIN, "train.epochs=1", "train.retain_per_epoch=64"]
    with disturb.command(["train", *words, *quick, "exclude_forget=true"], tmp_path, "run") as run:
        disturb.kill_one(run, "reader")
        assert not (run.folder / "split").exists()
        assert run.wait() == 0, run.log[-8000:]
        assert pq.read_table(run.folder / "split" / "forget.parquet").equals(expected.forget)
    disturb.gone(run.mark)
    assert not disturb.leftovers(tmp_path, run.folder)
