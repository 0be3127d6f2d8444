"""Checkpoint folders that were cut off are never resumed from."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from megu_dist.engine.checkpoints import Progress, is_whole, name_of, newest, progress_of, seal


def make(root: Path, attempt: str, epoch: int, world: int = 1) -> Path:
    """A whole checkpoint."""
    folder = root / attempt / name_of(epoch)
    (folder / "state").mkdir(parents=True)
    for rank in range(world):
        (folder / "state" / f"shard-{rank}.pt").write_bytes(b"weights" * (rank + 1))
        seal(folder, rank, world, Progress(epoch, "calibrated"))
    return folder


def test_a_sealed_folder_is_whole(tmp_path: Path) -> None:
    folder = make(tmp_path, "a", 3, world=2)
    assert is_whole(folder, 2)
    assert progress_of(folder) == Progress(3, "calibrated")
    listing = json.loads((folder / "rank-0.json").read_text())
    assert (listing["world"], listing["files"]) == (2, {"state/shard-0.pt": 7})


@pytest.mark.parametrize("harm", ["cut", "longer", "gone", "no list", "half a list", "other world"])
def test_a_damaged_folder_is_not(tmp_path: Path, harm: str) -> None:
    folder = make(tmp_path, "a", 0, world=2)
    shard, listing = folder / "state" / "shard-1.pt", folder / "rank-1.json"
    match harm:
        case "cut":
            os.truncate(shard, 5)
        case "longer":
            shard.write_bytes(b"x" * 99)
        case "gone":
            shard.unlink()
        case "no list":
            listing.unlink()
        case "half a list":
            listing.write_text(listing.read_text()[:-9])
    assert not is_whole(folder, 4 if harm == "other world" else 2)
    assert not is_whole(folder, 1)
    assert newest(tmp_path, 2) == (folder if harm == "other world" else None)


def test_the_newest_whole_one_wins(tmp_path: Path) -> None:
    assert newest(tmp_path, 1) is None
    assert newest(tmp_path / "absent", 1) is None
    make(tmp_path, "a", 0)
    second = make(tmp_path, "b", 1)
    torn = make(tmp_path, "a", 2)
    (torn / "state" / "shard-0.pt").unlink()
    make(tmp_path, "c", 9, world=2)  # of another number of workers
    assert newest(tmp_path, 1) == second
    later = make(tmp_path, "z", 1)
    os.utime(second, (1, 1))
    assert newest(tmp_path, 1) == later
    assert newest(tmp_path, 2) == tmp_path / "c" / name_of(9)


def test_epochs_beyond_five_digits_are_ordered_by_number(tmp_path: Path) -> None:
    make(tmp_path, "a", 99_999)
    assert newest(tmp_path, 1) != make(tmp_path, "a", 5)
    assert newest(tmp_path, 1) == tmp_path / "a" / "epoch-99999"
