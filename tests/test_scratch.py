"""Temporary folders outlive neither their block nor, for long, a killed process."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from megu_dist import scratch

KILLED = """
import os, signal
from megu_dist import scratch
with scratch.folder("checkpoint") as path:
    {write}
    print(path, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def killed(place: Path, write: str) -> Path:
    """The folder of a process that was killed within the block."""
    environment = os.environ | {"TMPDIR": str(place)}
    script = KILLED.format(write=write)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    path = Path(done.stdout.strip())
    assert path.is_dir()
    return path


def test_gone_after_the_block() -> None:
    with scratch.folder("checkpoint") as path:
        assert path.is_dir()
    assert not path.exists()


@pytest.mark.parametrize("write", ["(path / 'weights').write_text('x')", "pass"], ids=["filled", "empty"])
def test_of_a_killed_process_is_swept_at_once(place: Path, write: str) -> None:
    path = killed(place, write)
    scratch.sweep()
    assert not path.exists()


def test_of_a_living_process_stays() -> None:
    with scratch.folder("checkpoint") as path:
        scratch.sweep()
        assert path.is_dir()


def test_not_locked_yet_stays(place: Path) -> None:
    """As it is between making the folder and locking it."""
    path = place / f"megu-checkpoint-{os.getpid()}-abc"
    path.mkdir()
    scratch.sweep()
    assert path.is_dir()


def test_others_folders_stay(place: Path) -> None:
    path = place / "megu-checkpoint-other"
    path.mkdir()
    (place / "tmp123").mkdir()
    scratch.sweep()
    assert path.is_dir()
    assert (place / "tmp123").is_dir()
