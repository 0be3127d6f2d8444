"""Checkpoint folders that know whether they are whole: a copy that was cut off is never resumed from."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PREFIX = "epoch-"


@dataclass(frozen=True)
class Progress:
    """What a checkpoint has seen: ``steps`` of ``epoch`` (from 0; none: all of them), and all epochs before it.

    ``stopped``: whether the ``calibrated`` stop rule has ended the fit.
    """

    epoch: int
    stopped: str = "fixed"
    steps: int | None = None

    @property
    def next(self) -> tuple[int, int]:
        """Epoch and step to go on with."""
        return (self.epoch + 1, 0) if self.steps is None else (self.epoch, self.steps)

    @property
    def order(self) -> tuple[int, float]:
        """Greater for a checkpoint that has seen more."""
        return self.epoch, math.inf if self.steps is None else self.steps


def name_of(progress: Progress, world: int = 1) -> str:
    """Folder name. Names the number of workers, so that none is mixed with one that other workers left half done."""
    step = "" if progress.steps is None else f"-step-{progress.steps:07d}"
    return f"{PREFIX}{progress.epoch:05d}{step}" + (f"-of-{world}" if world > 1 else "")


def progress_of(folder: Path) -> Progress:
    """What a checkpoint has seen."""
    return Progress(**_listing(folder, 0)["progress"])


def world_of(folder: Path) -> int:
    """How many workers wrote it."""
    return int(_listing(folder, 0)["world"])


def seal(folder: Path, rank: int, world: int, progress: Progress) -> None:
    """Lists this rank's files with their sizes; written last."""
    files = {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
    (folder / f"rank-{rank}.json").write_text(
        json.dumps({"progress": asdict(progress), "world": world, "files": files})
    )


def is_whole(folder: Path) -> bool:
    """Whether the list of every rank that wrote it is there and every file in it has its size."""
    try:
        world = world_of(folder)
        listings = [_listing(folder, rank) for rank in range(world)]
    except (OSError, json.JSONDecodeError):
        return False
    if any(listing["world"] != world for listing in listings):
        return False
    return all(
        (folder / name).is_file() and (folder / name).stat().st_size == size
        for listing in listings
        for name, size in listing["files"].items()
    )


def newest(root: Path) -> Path | None:
    """The whole checkpoint below ``root`` (one folder per attempt) that has seen most, if there is any."""
    found = [path for path in root.glob(f"*/{PREFIX}*") if is_whole(path)]
    return max(found, key=lambda path: (progress_of(path).order, path.stat().st_mtime), default=None)


def _listing(folder: Path, rank: int) -> dict[str, Any]:
    return json.loads((folder / f"rank-{rank}.json").read_text())


def to_resume(root: Path, given: str | None, own: bool) -> Path | None:
    """The newest whole checkpoint under ``root`` if ``own`` ones count, else the one that the job was given."""
    found = newest(root) if own else None
    return found or (None if given is None else Path(given))
