"""Images that cannot be decoded: counted, named, and left out as far as ``data.max_bad_fraction`` allows.

Whoever meets one writes a small file that is named by its row, so that an image met in every epoch, or by several
workers, counts once, and so that nothing depends on how many workers there are. The folder is the run's own and, like
all of it, shared by the nodes. An image that is to be forgotten is never left out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from megu_dist.errors import UserError
from megu_dist.store import write_json

SHOWN = 5
SCHEMA = pa.schema([("split", pa.string()), ("row", pa.int64()), ("id", pa.string()), ("reason", pa.string())])


@dataclass(frozen=True)
class BadRow:
    """An image that cannot be decoded."""

    row: int
    id: str
    reason: str


@dataclass(frozen=True)
class BadRows:
    """The bad rows that a run has met so far, and how many it may meet."""

    folder: Path
    fraction: float  # of a split's images
    forget: np.ndarray  # training rows that must not be left out

    def report(self, split: str, total: int, found: list[BadRow]) -> None:
        """Names ``found`` for the run. Raises :class:`UserError` for a forget image, or when there are too many."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for one in found:
            file = self.folder / f"{split}-{one.row:012d}.json"
            if not file.is_file():
                write_json(file, {"split": split, "row": one.row, "id": one.id, "reason": one.reason})
        for one in found:
            if split == "train" and one.row in self.forget:
                raise UserError(
                    f"image {one.id!r} is to be forgotten and cannot be read ({one.reason}): it is never left out; "
                    "mend it, or take it out of the request"
                )
        known = [name for name in sorted(file.name for file in self.folder.iterdir()) if name.startswith(f"{split}-")]
        if len(known) > self.fraction * total:
            some = [json.loads((self.folder / name).read_text()) for name in known[:SHOWN]]
            ids = ", ".join(repr(one["id"]) for one in some) + (" …" if len(known) > SHOWN else "")
            raise UserError(
                f"{len(known)} of {total:,} {split} images cannot be read, more than data.max_bad_fraction="
                f"{self.fraction} allows: {ids} ({some[0]['reason']}); split/bad_rows.parquet names all met so "
                "far; mend them, or set data.max_bad_fraction higher"
            )

    def write(self, file: Path) -> int:
        """Writes all of them to one Parquet file, if there are any; returns how many there are."""
        met = sorted(self.folder.glob("*.json")) if self.folder.is_dir() else []
        if met:
            records = [json.loads(one.read_text()) for one in met]
            file.parent.mkdir(exist_ok=True)
            temporary = file.with_name(f".{file.name}")
            pq.write_table(pa.Table.from_pylist(records, SCHEMA), temporary)
            temporary.replace(file)
        return len(met)
