"""The run folder: every node can write, rename and lock there, and what one writes the others read.

Not one look but three, one after the other on all nodes: :meth:`Share.write`, :meth:`Share.read`, :meth:`Share.clean`.
"""

from __future__ import annotations

from typing import Any

from megu_dist.doctor.base import FAIL, OK, WARN, Asked, Facts, Finding, Seen, listed

BOX = ".megu-doctor"
MOUNT = "mount the same shared folder at this path on every node, or name another one: --storage DIR (run.dir=DIR)"


class Share:
    """One node's file in ``<storage>/.megu-doctor-<token>/``, locked until :meth:`clean`."""

    def __init__(self, storage: str, token: str, name: str) -> None:
        from pathlib import Path

        self.box, self.name, self.token = Path(storage) / f"{BOX}-{token}", name, token
        self.made: list[Any] = []  # folders
        self.handle: int | None = None

    def write(self) -> Facts:
        """Writes the file. ``error``: why that failed; ``locks``: why it could not be locked."""
        import fcntl
        import os

        try:
            missing = [folder for folder in (self.box, *self.box.parents) if not folder.exists()]
            for folder in reversed(missing):
                folder.mkdir(exist_ok=True)
                self.made.insert(0, folder)
            part = self.box / f"{self.name}.part"
            self.handle = os.open(part, os.O_CREAT | os.O_WRONLY)
            os.write(self.handle, self.token.encode())
            os.fsync(self.handle)
            part.replace(self.box / self.name)
        except OSError as error:
            return {"error": f"{error.strerror} ({error.filename or self.box.parent})"}
        try:
            fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return {"locks": error.strerror}
        return {}

    def read(self, names: list[str]) -> Facts:
        """``unseen``: files of others that cannot be read here; ``unlocked``: those whose lock is not noticed here."""
        import fcntl
        import os
        import time

        unseen, unlocked = list(names), []
        end = time.monotonic() + 5  # network file systems may lag
        while unseen:
            unseen = [name for name in unseen if not self._reads(name)]
            if time.monotonic() > end:
                break
            time.sleep(0.2 if unseen else 0)
        for name in names:
            if name in (*unseen, self.name):
                continue
            handle = os.open(self.box / name, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                unlocked.append(name)
            except OSError:
                pass
            finally:
                os.close(handle)
        return {"unseen": unseen, "unlocked": unlocked}

    def _reads(self, name: str) -> bool:
        try:
            return bool((self.box / name).read_text() == self.token)
        except OSError:
            return False

    def clean(self) -> None:
        """Removes what this node has made."""
        import contextlib
        import os

        if self.handle is not None:
            os.close(self.handle)
        for name in (self.name, f"{self.name}.part"):
            with contextlib.suppress(OSError):
                (self.box / name).unlink()
        for folder in dict.fromkeys([self.box, *self.made]):
            with contextlib.suppress(OSError):  # others are still in it
                folder.rmdir()


def judge(seen: Seen, asked: Asked) -> list[Finding]:
    """``seen`` has what :meth:`Share.write` and :meth:`Share.read` returned, in one."""
    storage = next(iter(asked.nodes.values())).storage
    found, written = [], [name for name, facts in seen.items() if "error" not in facts]
    for name, facts in seen.items():
        if "error" in facts:
            mend = "give a folder that this user may write to: --storage DIR (run.dir=DIR)"
            mend = MOUNT if asked.cluster else mend
            found.append(Finding("storage", FAIL, f"cannot write to {storage}: {facts['error']}", mend, (name,)))
        elif facts.get("unseen"):
            told = (
                f"{storage} is another folder than on {listed(facts['unseen'])}: files written there are not seen here"
            )
            found.append(Finding("storage", FAIL, told, MOUNT, (name,)))
        elif facts.get("locks"):
            told = f"{storage} has no file locks ({facts['locks']}): two runs in one folder would not notice each other"
            found.append(Finding("storage", WARN, told, "mount it with locks, and start no run twice", (name,)))
        elif facts.get("unlocked"):
            told = f"{storage}: locks taken on {listed(facts['unlocked'])} are not noticed here"
            mend = "mount it with locks that all nodes share (Lustre: -o flock, NFS: without nolock)"
            found.append(Finding("storage", WARN, told, mend, (name,)))
    if not found and len(written) > 1:
        return [Finding("storage", OK, f"{storage} is one folder, and every node can write to it")]
    return found or [Finding("storage", OK, f"{storage} can be written to")]
