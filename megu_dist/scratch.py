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
NEW_S = 60.0  # an empty folder so young may be locked in a moment


@contextmanager
def folder(name: str) -> Iterator[Path]:
    """A new folder ``megu-<name>-…`` for the length of the block; locked meanwhile, so that :func:`sweep` lets it be."""
    sweep()
    path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{name}-"))
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
            unlocked_yet = time.time() - status.st_mtime < NEW_S and not any(path.iterdir())
            if status.st_uid == os.getuid() and not unlocked_yet:
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            pass
        finally:
            os.close(handle)
