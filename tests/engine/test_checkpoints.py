"""Checkpoint folders that were cut off are never resumed from."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from megu_dist.engine.checkpoints import Progress, is_whole, name_of, newest, progress_of, seal, world_of


def make(root: Path, attempt: str, epoch: int, world: int = 1, steps: int | None = None) -> Path:
    """A whole checkpoint."""
    progress = Progress(epoch, "calibrated", steps)
    folder = root / attempt / name_of(progress, world)
    (folder / "state").mkdir(parents=True)
    for rank in range(world):
        (folder / "state" / f"shard-{rank}.pt").write_bytes(b"weights" * (rank + 1))
        seal(folder, rank, world, progress)
    return folder


def test_a_sealed_folder_is_whole(tmp_path: Path) -> None:
    folder = make(tmp_path, "a", 3, world=2)
    assert is_whole(folder)
    assert world_of(folder) == 2
    assert progress_of(folder) == Progress(3, "calibrated")
    listing = json.loads((folder / "rank-0.json").read_text())
    assert (listing["world"], listing["files"]) == (2, {"state/shard-0.pt": 7})


@pytest.mark.parametrize("harm", ["cut", "longer", "gone", "no list", "half a list", "another's list"])
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
        case "another's list":
            seal(folder, 1, 3, Progress(0))
    assert not is_whole(folder)
    assert newest(tmp_path) is None


def test_the_newest_whole_one_wins(tmp_path: Path) -> None:
    assert newest(tmp_path) is None
    assert newest(tmp_path / "absent") is None
    make(tmp_path, "a", 0)
    second = make(tmp_path, "b", 1)
    torn = make(tmp_path, "a", 2)
    (torn / "state" / "shard-0.pt").unlink()
    assert newest(tmp_path) == second
    later = make(tmp_path, "z", 1)
    os.utime(second, (1, 1))
    assert newest(tmp_path) == later
    make(tmp_path, "c", 1, steps=7)  # epoch 1 is half done there
    assert newest(tmp_path) == later
    make(tmp_path, "c", 2, world=2, steps=11)  # of another number of workers
    assert newest(tmp_path) == tmp_path / "c" / "epoch-00002-step-0000011-of-2"


def test_a_checkpoint_tells_where_to_go_on() -> None:
    assert Progress(3).next == (4, 0)
    assert Progress(3, steps=5).next == (3, 5)
    ordered = [Progress(2), Progress(3, steps=5), Progress(3, steps=10), Progress(3)]
    assert sorted(reversed(ordered), key=lambda progress: progress.order) == ordered


def test_epochs_beyond_five_digits_are_ordered_by_number(tmp_path: Path) -> None:
    make(tmp_path, "a", 99_999)
    make(tmp_path, "a", 5)
    assert newest(tmp_path) == tmp_path / "a" / "epoch-99999"
