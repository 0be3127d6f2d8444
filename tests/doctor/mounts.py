"""Small file systems for the tests that need a full or a read-only disk: real ones, where mounting is allowed."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small(folder: Path, options: str = "size=4m") -> Iterator[Path]:
    """A tmpfs at ``folder``; the test is skipped where this user may not mount one."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


NAMESPACE = ["unshare", "--mount", "--propagation", "private"]  # before a command: it gets mounts of its own


def mounts_allowed() -> bool:
    """Whether this user may mount in a namespace."""
    try:
        command = [*NAMESPACE, "mount", "-t", "tmpfs", "none", "/mnt"]
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False
