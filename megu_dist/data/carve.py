"""Holds out test and validation images of a source that has none, by a fixed seed.

The share does not depend on the seeds of a run: what is test data once is test data in every run and report.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from megu_dist.data.base import INDEX_SCHEMA, Piece, Source
from megu_dist.errors import UserError, nearest

TEST_SEED = 20_260_217
VALIDATION_SEED = 20_260_218


@dataclass(frozen=True)
class _View:
    """Rows of a base split, in order: the listed ones, or all but the listed ones (sorted row numbers)."""

    base_split: str
    listed: np.ndarray
    excluded: bool
    total: int  # rows of the base split

    def __len__(self) -> int:
        return self.total - len(self.listed) if self.excluded else len(self.listed)

    def to_base(self, rows: np.ndarray) -> np.ndarray:
        """Base row numbers. Memory is that of the held-out rows, not of the split."""
        if not self.excluded:
            return self.listed[rows]
        return rows + np.searchsorted(self.listed - np.arange(len(self.listed)), rows, side="right")

    def before(self, base_rows: np.ndarray) -> np.ndarray:
        """How many rows of the view lie before each base row number."""
        held = np.searchsorted(self.listed, base_rows, side="left")
        return base_rows - held if self.excluded else held


class CarvedSource(Source):
    """A source whose train or test split gave some rows to a split that it lacks. Ids stay those of the base."""

    def __init__(self, base: Source, test_fraction: float, validation_fraction: float) -> None:
        self._base = base
        self._test_fraction = test_fraction
        self._validation_fraction = validation_fraction

    def __getstate__(self) -> dict[str, Any]:
        """Without the row numbers: they follow from the seed, and a worker draws them again in no time."""
        return {key: value for key, value in self.__dict__.items() if key not in ("_views", "_pieces")}

    @property
    def class_names(self) -> list[str]:
        return self._base.class_names

    @property
    def splits(self) -> list[str]:
        return list(self._views)

    def fingerprint(self) -> str:
        parts = [self._base.fingerprint(), self._test_fraction, self._validation_fraction, TEST_SEED, VALIDATION_SEED]
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def pieces(self, split: str) -> list[Piece]:
        self._view(split)
        return self._pieces[split]

    def num_rows(self, split: str) -> int:
        return len(self._view(split))

    def quick_index(self, split: str) -> bool:
        return self._base.quick_index(self._view(split).base_split)

    def encoded_bytes(self, split: str) -> float:
        return self._base.encoded_bytes(self._view(split).base_split)

    def index(self, piece: Piece) -> pa.Table:
        view = self._view(piece.split)
        rows = np.arange(piece.first, piece.first + piece.count)
        if not len(rows):
            return INDEX_SCHEMA.empty_table()
        base_rows = view.to_base(rows)
        pieces = self._base.pieces(view.base_split)
        numbers, starts = np.unique(self._base.locality(view.base_split, base_rows), return_index=True)
        tables = [
            self._base.index(pieces[number]).take(pa.array(part - pieces[number].first))
            for number, part in zip(numbers.tolist(), np.split(base_rows, starts[1:]), strict=True)
        ]
        return _renumber(pa.concat_tables(tables), rows)

    def gather(self, split: str, rows: np.ndarray) -> pa.Table:
        view, rows = self._view(split), np.asarray(rows, dtype=np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= len(view)):
            raise IndexError(f"split {split!r} has {len(view)} rows, not {rows.min()} … {rows.max()}")
        return _renumber(self._base.gather(view.base_split, view.to_base(rows)), rows)

    def _view(self, split: str) -> _View:
        if split not in self._views:
            raise UserError(f"the data has no split {split!r}: {nearest(split, self._views)}")
        return self._views[split]

    @cached_property
    def _views(self) -> dict[str, _View]:
        none = np.empty(0, dtype=np.int64)
        views = {split: _View(split, none, True, self._base.num_rows(split)) for split in self._base.splits}
        if self._test_fraction and "test" not in views:
            held = _draw(views["train"].total, self._test_fraction, TEST_SEED, "data.test_fraction")
            views["train"] = _View("train", held, True, views["train"].total)
            views["test"] = _View("train", held, False, views["train"].total)
        if self._validation_fraction and "test" in views and "validation" not in views:
            test = views["test"]
            held = _draw(len(test), self._validation_fraction, VALIDATION_SEED, "data.validation_fraction")
            views["validation"] = _View(test.base_split, test.to_base(held), False, test.total)
            listed = np.delete(test.listed, held) if not test.excluded else held
            views["test"] = _View(test.base_split, listed, test.excluded, test.total)
        return views

    @cached_property
    def _pieces(self) -> dict[str, list[Piece]]:
        """What is left of each base piece, so that a piece still lies in one file."""
        found = {}
        for split, view in self._views.items():
            base = self._base.pieces(view.base_split)
            edges = view.before(np.cumsum([0] + [piece.count for piece in base])).tolist()
            found[split] = [
                Piece(split, first, end - first, piece.uri, piece.part)
                for piece, (first, end) in zip(base, itertools.pairwise(edges), strict=True)
                if end > first
            ]
        return found


def carve(source: Source, test_fraction: float, validation_fraction: float) -> Source:
    """``source`` with a test split held out of train, and a validation split out of test, where it has none."""
    for value, key in ((test_fraction, "data.test_fraction"), (validation_fraction, "data.validation_fraction")):
        if not 0 <= value < 1:
            raise UserError(f"{key}={value}: must be at least 0 and below 1")
    has_test = "test" in source.splits
    cuts_test = test_fraction > 0 and not has_test
    cuts_validation = validation_fraction > 0 and "validation" not in source.splits and (has_test or cuts_test)
    if not cuts_test and not cuts_validation:
        return source
    carved = CarvedSource(source, test_fraction if cuts_test else 0.0, validation_fraction if cuts_validation else 0.0)
    carved.splits  # noqa: B018  (draws the rows now, so that a split too small to share fails here)
    return carved


def _draw(total: int, fraction: float, seed: int, key: str) -> np.ndarray:
    """Sorted row numbers of a seeded share, at least one and not all."""
    if total < 2:
        raise UserError(
            f"{key}={fraction}: {total} rows are too few to hold some out; set data.test_path to other images"
        )
    count = min(max(round(total * fraction), 1), total - 1)
    return np.sort(np.random.default_rng(seed).choice(total, count, replace=False, shuffle=False))


def _renumber(table: pa.Table, rows: np.ndarray) -> pa.Table:
    return table.set_column(0, table.schema.field("row"), pa.array(rows, pa.int64()))
