"""Writes that survive a crash at any moment: each is on the disk, or not at all, when the next one begins."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from megu_dist.store import write_text


def step(name: str) -> None:
    """Called before and after every write. Does nothing; a test puts the end of the process here."""


def append(path: Path, text: str) -> None:
    """Adds ``text``, which ends with a newline, to a file. A crash leaves a last line without a newline, or none."""
    step(f"append {path.name}")
    new = not path.exists()
    with path.open("ab", buffering=0) as file:
        data = memoryview(text.encode())
        while data:
            data = data[file.write(data) :]
        os.fsync(file.fileno())
    if new:
        sync_folder(path.parent)
    step(f"appended {path.name}")


def cut(path: Path, size: int) -> None:
    """Shortens a file to its first ``size`` bytes."""
    step(f"cut {path.name}")
    with path.open("r+b") as file:
        file.truncate(size)
        os.fsync(file.fileno())
    step(f"cut off {path.name}")


def write(path: Path, text: str) -> None:
    """Puts a whole file in place; its folder is made."""
    step(f"write {path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    sync_folder(path.parent)
    step(f"wrote {path.name}")


def remove(path: Path) -> None:
    """Removes a file or a folder, if it is there; a crash may leave part of a folder."""
    if not path.exists():
        return
    step(f"remove {path.name}")
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    step(f"removed {path.name}")


def sync_tree(folder: Path) -> None:
    """Has all files of a folder, written by somebody else, on the disk."""
    for path in (*folder.iterdir(), folder, folder.parent):
        sync_folder(path)


def sync_folder(path: Path) -> None:
    """fsync of a folder (its names) or of a file."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
