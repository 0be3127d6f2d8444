"""A lock that says who holds it, and that the kernel frees when its holder dies."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from megu_dist.errors import UserError

BUSY = (errno.EAGAIN, errno.EACCES)


@contextmanager
def held(path: Path, say: Callable[[str], None] | None = None) -> Iterator[None]:
    """Holds the lock for the length of the block; waits for it, and with ``say`` tells whom it waits for."""
    with path.open("a+") as file:
        _take(file.fileno(), path, say)
        file.truncate(0)  # what a former holder has left
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {now()}\n")
        file.flush()
        yield


def _take(handle: int, path: Path, say: Callable[[str], None] | None) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    except OSError as error:
        if error.errno not in BUSY:
            raise UserError(
                f"{path} cannot be locked ({error.strerror}): put the ledger on a file system that has locks (request.dir)"
            ) from None
    if say:
        say(f"waiting for {holder(path)}, which works on {path.parent}")
    fcntl.flock(handle, fcntl.LOCK_EX)


def holder(path: Path) -> str:
    """Who holds the lock, or held it last."""
    return path.read_text().strip() or "another process"


def now() -> str:
    """UTC, in seconds, as in 2026-01-31T12:00:00Z."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
