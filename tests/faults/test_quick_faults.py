"""A full disk, a killed training worker and a killed driver, one after the other in one run: nothing is lost."""

from __future__ import annotations

import io
import json
from pathlib import Path

import disturb
import pytest
from safetensors.numpy import load_file

from megu_dist import pipeline as stages
from megu_dist.config.compose import load
from megu_dist.data.stream import in_this_process
from megu_dist.engine import checkpoints
from megu_dist.progress import Reporter

NET = ["model.width=8", "model.stage_blocks=[1]", "model.num_channels=1", "model.image_size=8"]
# Short epochs, and many of them: each waits for Ray Train to take its checkpoint.
LEARN = ["train.epochs=40", "train.retain_per_epoch=128", "train.batch_size=32", "train.precision=fp32"]


@pytest.fixture(scope="module")
def words(cache_dir: Path) -> list[str]:
    """A small training job."""
    return ["data=digits", f"data.cache_dir={cache_dir}", *NET, *LEARN, "train.threads=1", "engine=ddp"]


@pytest.fixture(scope="module")
def undisturbed(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same job, done in this process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with in_this_process():
        pipeline = stages.Pipeline(load(words, ["train=scratch"]).settings, folder, Reporter(io.StringIO()))
        with pipeline.store.locked():
            stages.train(pipeline)
    return folder


def seen(run: disturb.Command) -> tuple[int, float]:
    """Epochs of the newest whole checkpoint."""
    found = [checkpoints.newest(root) for root in (run.folder / "checkpoints").glob("*")]
    return max((checkpoints.progress_of(one).order for one in found if one is not None), default=(-1, 0.0))


def goes_on(run: disturb.Command) -> None:
    """Waits for a checkpoint that is newer than those that are there."""
    before = seen(run)
    run.until(lambda: seen(run) > before, f"a checkpoint after {before}", every=0.05)


def test_full_disk_killed_worker_killed_driver(words: list[str], undisturbed: Path, tmp_path: Path, disk: Path) -> None:
    start = ["train", *words, "train.max_failures=0"]
    with disturb.command(start, tmp_path, "run", disk=disk) as run:
        run.until(lambda: seen(run)[0] >= 1, "a checkpoint", every=0.05)
        filler = disturb.fill(disk)
        disturb.is_told_of_a_full_disk(run)
        disturb.gone(run.mark)
        assert not disturb.leftovers(tmp_path, run.folder)
        filler.unlink()

        run.words = ["train", *words, "train.max_failures=1"]
        run.start()
        goes_on(run)
        disturb.named(run.processes(), "train worker")[0].kill()
        goes_on(run)
        assert run.process is not None
        run.process.kill()
        run.process.wait()
        disturb.gone(run.mark, agents=False)
        assert not (run.folder / "model").exists()

        before = seen(run)
        assert run.start().wait() == 0, run.log[-8000:]
        assert json.loads((run.folder / "training.json").read_text())["resumed"]["epoch"] > before[0] >= 3
        disturb.gone(run.mark, agents=False)
        assert not disturb.leftovers(tmp_path, run.folder)
        found, expected = (load_file(folder / "model" / "model.safetensors") for folder in (run.folder, undisturbed))
        assert found.keys() == expected.keys()
        assert all((found[name] == value).all() for name, value in expected.items())
        logs = [(folder / "history.jsonl").read_text().splitlines() for folder in (run.folder, undisturbed)]
        told = [[(line["epoch"], line["step"], line["loss"]) for line in map(json.loads, log)] for log in logs]
        assert told[0] == told[1]
