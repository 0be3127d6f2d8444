"""An interrupted training, and a killed worker and a killed driver in one run: nothing is lost."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import disturb
import outcomes
from safetensors.numpy import load_file

from megu_dist.engine import checkpoints

EPOCHS = ["train.epochs=40", "train.lr=0.1"]


def seen(run: disturb.Command) -> tuple[int, float]:
    """Epochs of the newest whole checkpoint."""
    found = [checkpoints.newest(root) for root in (run.folder / "checkpoints").glob("*")]
    return max((checkpoints.progress_of(one).order for one in found if one is not None), default=(-1, 0.0))


def goes_on(run: disturb.Command) -> None:
    """Waits for a checkpoint that is newer than those that are there."""
    before = seen(run)
    run.until(lambda: seen(run) > before, f"a checkpoint after {before}", every=0.05)


def test_ctrl_c_in_training_is_said_and_leaves_nothing(training_words: list[str], tmp_path: Path) -> None:
    with disturb.command(["train", *training_words, "train.epochs=500"], tmp_path, "run") as run:
        goes_on(run)
        assert run.process is not None
        run.process.send_signal(signal.SIGINT)
        assert run.wait(60) == 130, run.log[-8000:]
        assert run.output.splitlines()[-1] == "megu: interrupted; run the same command again to continue"
        assert "Traceback" not in run.output
        disturb.gone(run.mark, agents=False)
        assert not disturb.leftovers(tmp_path, run.folder)
        assert seen(run)[0] >= 0


def test_killed_worker_killed_driver(training_words: list[str], tmp_path: Path) -> None:
    words = [*training_words, *EPOCHS]
    undisturbed = outcomes.trained_here(words, tmp_path / "undisturbed")
    with disturb.command(["train", *words, "train.max_failures=1"], tmp_path, "run") as run:
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
        assert json.loads((run.folder / "training.json").read_text())["resumed"]["epoch"] > before[0] >= 1
        disturb.gone(run.mark, agents=False)
        assert not disturb.leftovers(tmp_path, run.folder)
        found, expected = (load_file(folder / "model" / "model.safetensors") for folder in (run.folder, undisturbed))
        assert found.keys() == expected.keys()
        assert all((found[name] == value).all() for name, value in expected.items())
        logs = [(folder / "history.jsonl").read_text().splitlines() for folder in (run.folder, undisturbed)]
        told = [[(line["epoch"], line["step"], line["loss"]) for line in map(json.loads, log)] for log in logs]
        assert told[0] == told[1]
