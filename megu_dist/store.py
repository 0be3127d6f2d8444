"""Artefacts of a run folder: keyed by content, written atomically, never lost, never served stale.

A stage writes into a temporary folder; its outputs are renamed into place and then its record, with the hash of its
resolved inputs, under ``.stages/``. A stage whose record has the same hash is skipped. When inputs change, the earlier
outputs move to ``.previous/<stage>-<hash>`` and come back by rename when those inputs do.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megu_dist.errors import UserError


@dataclass(frozen=True)
class Record:
    """What is known of a finished stage."""

    stage: str
    key: str
    seconds: float
    outputs: list[str]
    info: dict[str, Any]
    cached: bool = False


def content_key(inputs: dict[str, Any]) -> str:
    """SHA-256 of the canonical JSON of a stage's inputs."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()


def write_json(path: Path, data: Any) -> None:
    """:func:`write_text` of indented JSON."""
    write_text(path, json.dumps(data, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Atomic: a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class ArtefactStore:
    """One run folder. ``stage`` runs a function unless its outputs for the same inputs are there."""

    def __init__(self, folder: Path, resume: bool = True) -> None:
        self.folder, self.resume = folder, resume
        for name in (".stages", ".previous", ".tmp"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time works in a run folder; the lock of a dead process is free at once."""
        with (self.folder / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"{self.folder} is in use by another megu process; wait for it or choose another run.name"
                ) from None
            except OSError as error:
                raise UserError(
                    f"{self.folder}: its file system has no locks ({error.strerror}), which keep two runs apart; "
                    "mount it with locks, or set run.dir to another folder"
                ) from None
            for left in (self.folder / ".tmp").iterdir():
                shutil.rmtree(left)
            for left in (*self.folder.glob(".*.[0-9]*"), *(self.folder / ".stages").glob(".*.[0-9]*")):
                left.unlink()  # of write_text, in a process that was killed
            yield

    def stage(
        self, stage: str, inputs: dict[str, Any], outputs: list[str], work: Callable[[Path], dict[str, Any] | None]
    ) -> Record:
        """Runs ``work(folder)``, which writes ``outputs`` into ``folder``, unless they exist for these inputs."""
        key = content_key(inputs)
        found = self.find(stage, key)
        if found is not None:
            return found
        start = time.monotonic()
        folder = self.folder / ".tmp" / f"{stage}-{key[:12]}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            info = work(folder) or {}
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)  # on a full disk, somebody needs the room
            raise
        missing = [name for name in outputs if not (folder / name).exists()]
        if missing:
            raise RuntimeError(f"stage {stage} did not write {missing}")
        seconds = round(time.monotonic() - start, 3)
        self._retire(stage)
        for name in outputs:
            _remove(self.folder / name)  # left by a process that died between its renames and its record
            (folder / name).rename(self.folder / name)
        shutil.rmtree(folder)
        record = {"stage": stage, "key": key, "seconds": seconds, "outputs": outputs, "info": info, "inputs": inputs}
        write_json(self._record_path(stage), record)
        return Record(stage, key, seconds, outputs, info)

    def find(self, stage: str, key: str) -> Record | None:
        """The finished stage with this key, brought back from ``.previous`` if need be."""
        if not self.resume:
            return None
        current = self.read(stage)
        if current is not None and current.key == key:
            return current
        kept = self.folder / ".previous" / f"{stage}-{key[:12]}"
        if not (kept / "record.json").is_file():
            return None
        data = json.loads((kept / "record.json").read_text())
        if not all((kept / name).exists() for name in data["outputs"]):  # a process died while bringing it back
            shutil.rmtree(kept)
            return None
        self._retire(stage)
        for name in data["outputs"]:
            _remove(self.folder / name)
            (kept / name).rename(self.folder / name)
        (kept / "record.json").rename(self._record_path(stage))
        shutil.rmtree(kept)
        return self.read(stage)

    def read(self, stage: str) -> Record | None:
        """The stage's current record, if its outputs are all there."""
        path = self._record_path(stage)
        if not path.is_file():
            return None
        data = json.loads(path.read_text())
        if not all((self.folder / name).exists() for name in data["outputs"]):
            return None
        return Record(stage, data["key"], data["seconds"], data["outputs"], data["info"], cached=True)

    def _record_path(self, stage: str) -> Path:
        return self.folder / ".stages" / f"{stage}.json"

    def _retire(self, stage: str) -> None:
        """Moves the stage's current outputs aside."""
        path = self._record_path(stage)
        if not path.is_file():
            return
        data = json.loads(path.read_text())
        kept = self.folder / ".previous" / f"{stage}-{data['key'][:12]}"
        kept.mkdir(parents=True, exist_ok=True)  # holds the first outputs if a process died in this loop
        (kept / "record.json").unlink(missing_ok=True)
        for name in data["outputs"]:
            if (self.folder / name).exists():
                _remove(kept / name)
                (self.folder / name).rename(kept / name)
        if all((kept / name).exists() for name in data["outputs"]):
            path.rename(kept / "record.json")
        else:
            path.unlink()
            shutil.rmtree(kept)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
