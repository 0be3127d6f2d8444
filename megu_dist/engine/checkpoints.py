"""Checkpoint folders that know whether they are whole: a copy that was cut off is never resumed from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

PREFIX = "epoch-"


@dataclass(frozen=True)
class Progress:
    """The last epoch (from 0) that a checkpoint has seen, and whether the ``calibrated`` stop rule has ended the fit."""

    epoch: int
    stopped: str = "fixed"


def name_of(epoch: int) -> str:
    """Folder name of the checkpoint after ``epoch``."""
    return f"{PREFIX}{epoch:05d}"


def progress_of(folder: Path) -> Progress:
    """What a checkpoint has seen."""
    return Progress(**json.loads((folder / "rank-0.json").read_text())["progress"])


def seal(folder: Path, rank: int, world: int, progress: Progress) -> None:
    """Lists this rank's files with their sizes; written last."""
    files = {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
    (folder / f"rank-{rank}.json").write_text(
        json.dumps({"progress": asdict(progress), "world": world, "files": files})
    )


def is_whole(folder: Path, world: int) -> bool:
    """Whether every rank's list is there and every file in it has its size."""
    for rank in range(world):
        try:
            listing = json.loads((folder / f"rank-{rank}.json").read_text())
        except (OSError, json.JSONDecodeError):
            return False
        if listing["world"] != world:
            return False
        for name, size in listing["files"].items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != size:
                return False
    return True


def newest(root: Path, world: int) -> Path | None:
    """The whole checkpoint with the most epochs below ``root`` (one folder per attempt), if there is any."""
    found = [path for path in root.glob(f"*/{PREFIX}*") if is_whole(path, world)]
    return max(found, key=lambda path: (progress_of(path).epoch, path.stat().st_mtime), default=None)
