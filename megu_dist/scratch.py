"""Temporary folders that a killed process does not leave for ever: the next one on the same machine removes them."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "megu-"
NEW_S = 60.0  # an empty folder so young may be locked in a moment, if the process in its name lives


@contextmanager
def folder(name: str) -> Iterator[Path]:
    """A new folder ``megu-<name>-…`` for the length of the block; locked meanwhile, so that :func:`sweep` lets it be."""
    sweep()
    path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{name}-{os.getpid()}-"))
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(handle)


def sweep(names: tuple[str, ...] = ("checkpoint",)) -> None:
    """Removes this user's folders whose process is dead: the lock of such a one is free."""
    for path in (one for name in names for one in Path(tempfile.gettempdir()).glob(f"{PREFIX}{name}-*")):
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:  # gone meanwhile, or another user's
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            status = os.fstat(handle)
            young = time.time() - status.st_mtime < NEW_S and not any(path.iterdir())
            unlocked_yet = young and _lives(int(path.name.split("-")[2]))
            if status.st_uid == os.getuid() and not unlocked_yet:
                shutil.rmtree(path, ignore_errors=True)
        except (OSError, ValueError):  # ValueError: no name of ours
            pass
        finally:
            os.close(handle)


def _lives(pid: int) -> bool:
    import psutil  # here, since it takes time that most commands need not spend

    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
