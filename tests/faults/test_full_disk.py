"""The disk of the run folder fills up: a clear error, and the same command goes on once there is room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import disturb
import pytest


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.getuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder]).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path) -> Path:
    """Takes every byte that is left."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while file.write(b"x" * size) == size:
                    pass
            except OSError:
                pass
    return filler


def is_told(run: disturb.Command) -> None:
    """A sentence that says what is wrong and what to do; no traceback."""
    assert run.wait() == 2, run.log[-6000:]
    assert "a disk is full" in run.output
    assert "run the same command again" in run.output
    assert "Traceback" not in run.output


def test_the_disk_is_full_when_a_checkpoint_is_written(
    request_words: list[str], undisturbed: dict[str, Any], tmp_path: Path, disk: Path
) -> None:
    words = [*request_words, "train.max_failures=0"]
    with disturb.command(words, tmp_path, "run", disk=disk) as run:
        run.until(disturb.moments(run.folder)["train worker"], "a checkpoint")
        filler = fill(disk)
        is_told(run)
        disturb.gone(run.mark)
        assert not disturb.leftovers(tmp_path, run.folder)
        filler.unlink()
        assert run.start().finish() == undisturbed
        assert "perturb: already done" in run.output
    disturb.gone(run.mark)
    assert not disturb.leftovers(tmp_path, run.folder)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_disk_is_full_in_every_other_stage(
    request_words: list[str], undisturbed: dict[str, Any], tmp_path: Path, disk: Path
) -> None:
    with disturb.command(request_words, tmp_path, "run", disk=disk) as run:
        for what in ("replica", "perturber", "predictor"):
            run.until(disturb.moments(run.folder)[what], f"the moment of the {what}")
            run.until(lambda what=what: disturb.named(run.processes(), what), f"a {what}")  # type: ignore[misc]
            filler = fill(disk)
            is_told(run)
            disturb.gone(run.mark)
            filler.unlink()
            run.start()
        assert run.finish() == undisturbed
    disturb.gone(run.mark)
    assert not disturb.leftovers(tmp_path, run.folder)
