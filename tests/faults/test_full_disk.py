"""The disk of the run folder fills up: a clear error, and the same command goes on once there is room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import disturb
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_the_disk_is_full_when_a_checkpoint_is_written(
    request_words: list[str], undisturbed: dict[str, Any], tmp_path: Path, disk: Path
) -> None:
    words = [*request_words, "train.max_failures=0"]
    with disturb.command(words, tmp_path, "run", disk=disk) as run:
        run.until(disturb.moments(run.folder)["train worker"], "a checkpoint")
        filler = disturb.fill(disk)
        disturb.is_told_of_a_full_disk(run)
        disturb.gone(run.mark)
        assert not disturb.leftovers(tmp_path, run.folder)
        filler.unlink()
        assert run.start().finish() == undisturbed
        assert "perturb: already done" in run.output
    disturb.gone(run.mark)
    assert not disturb.leftovers(tmp_path, run.folder)


def test_the_disk_is_full_in_every_other_stage(
    request_words: list[str], undisturbed: dict[str, Any], tmp_path: Path, disk: Path
) -> None:
    with disturb.command(request_words, tmp_path, "run", disk=disk) as run:
        for what in ("replica", "perturber", "predictor"):
            run.until(disturb.moments(run.folder)[what], f"the moment of the {what}")
            run.until(lambda what=what: disturb.named(run.processes(), what), f"a {what}")  # type: ignore[misc]
            filler = disturb.fill(disk)
            disturb.is_told_of_a_full_disk(run)
            disturb.gone(run.mark)
            filler.unlink()
            run.start()
        assert run.finish() == undisturbed
    disturb.gone(run.mark)
    assert not disturb.leftovers(tmp_path, run.folder)
