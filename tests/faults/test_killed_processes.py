"""SIGKILL of what a run consists of, on a local Ray; the run ends in the numbers of one that was left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import disturb
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_one_process_of_every_kind_is_killed(
    request_words: list[str], undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    """The oracle's replica, a reader and the model actor of perturb, a train worker, the model actor of evaluate."""
    with disturb.command(request_words, tmp_path, "run") as run:
        for what, ready in disturb.moments(run.folder).items():
            disturb.kill_one(run, what, ready)
        assert run.finish() == undisturbed
    disturb.gone(run.mark)
    assert not disturb.leftovers(tmp_path, run.folder)


def test_a_killed_driver_leaves_nothing_and_the_same_command_goes_on(
    request_words: list[str], undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    with disturb.command(request_words, tmp_path, "run") as run:
        run.until(disturb.moments(run.folder)["train worker"], "a checkpoint")
        assert run.process is not None
        run.process.kill()
        run.process.wait()
        disturb.gone(run.mark, agents=False)
        assert not (run.folder / "model").exists()
        run.start()
        assert run.finish() == undisturbed
        assert "perturb: already done" in run.output
        assert "finetune: started" in run.output
        disturb.gone(run.mark, agents=False)
    assert not disturb.leftovers(tmp_path, run.folder)


def test_the_driver_is_killed_in_every_stage(
    request_words: list[str], undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    with disturb.command(request_words, tmp_path, "run") as run:
        for what, ready in disturb.moments(run.folder).items():
            run.until(ready, f"the moment of the {what}")
            run.until(lambda what=what: disturb.named(run.processes(), what), f"a {what}")  # type: ignore[misc]
            assert run.process is not None
            run.process.kill()
            run.process.wait()
            disturb.gone(run.mark)
            run.start()
        assert run.finish() == undisturbed
    disturb.gone(run.mark)
    assert not disturb.leftovers(tmp_path, run.folder)


@pytest.mark.parametrize("engine", [["engine=ddp"], ["engine=deepspeed", "engine.zero_stage=2"]], ids=["ddp", "zero2"])
def test_one_of_two_train_workers_is_killed_while_it_writes_a_checkpoint(
    request_words: list[str], engine: list[str], tmp_path: Path
) -> None:
    words = [*request_words, *engine, "train.num_workers=2"]
    with disturb.command(words, tmp_path, "left-alone") as run:
        undisturbed = run.finish()
    with disturb.command(words, tmp_path, "run") as run:
        first = run.until(lambda: disturb.named(run.processes(), "train worker")[1:], "two train workers")
        run.until(lambda: list((tmp_path / "scratch").glob("megu-checkpoint-*/*")), "a checkpoint in the making")
        first[-1].kill()
        assert run.finish() == undisturbed
    disturb.gone(run.mark)
    assert not disturb.leftovers(tmp_path, run.folder)
