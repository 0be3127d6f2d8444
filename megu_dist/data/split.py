"""The split stage: which training images are to be forgotten. Labels and ids are read, by Ray Data where there are many."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from megu_dist.config.schema import ForgetSettings
from megu_dist.data.base import Source
from megu_dist.data.plan import CHUNK, hash_uniform
from megu_dist.errors import UserError, nearest

SMALL = 100_000  # rows whose labels and ids are read before Ray tasks would have started
QUICK = 20  # times as many of a source with a quick index
ALREADY_SCHEMA = pa.schema([("row", pa.int64()), ("label", pa.int64())])
LABELS = ("label", "fine")
Keep = Callable[[pa.Table], np.ndarray]  # index table → mask of the rows to take


@dataclass(frozen=True)
class Split:
    """The forget set (``INDEX_SCHEMA``, by row) and the class counts of the whole training split.

    In the ``subclass`` scenario the forget set has a column ``fine`` beside the (coarse) ``label``. ``already`` holds
    row and label of what was forgotten before: it is neither forgotten again nor retained.
    """

    forget: pa.Table
    class_counts: np.ndarray
    already: pa.Table = field(default_factory=lambda: ALREADY_SCHEMA.empty_table())

    @property
    def rows(self) -> np.ndarray:
        """Row numbers of the forget set, ascending."""
        return self.forget["row"].to_numpy()

    @property
    def left_out(self) -> np.ndarray:
        """Row numbers that are not retained, ascending."""
        return np.union1d(self.rows, self.already["row"].to_numpy())

    @property
    def labels(self) -> list[int]:
        """Labels of the forget concepts: fine ones in the ``subclass`` scenario."""
        return sorted(set(self.forget["fine" if "fine" in self.forget.column_names else "label"].to_pylist()))


@dataclass(frozen=True)
class Gone:
    """What was forgotten before: labels of whole classes, and single ids (which the data may no longer hold)."""

    labels: tuple[int, ...] = ()
    ids: frozenset[str] = frozenset()

    def __call__(self, index: pa.Table) -> np.ndarray:
        """Mask of an index table's rows (:data:`Keep`)."""
        return _InLabels(list(self.labels))(index) | _InIds(self.ids)(index)

    def __bool__(self) -> bool:
        return bool(self.labels or self.ids)


def make_split(
    source: Source,
    forget: ForgetSettings,
    classes: list[int],
    seed: int,
    progress: Callable[[int], None],
    gone: Gone = Gone(),
) -> Split:
    """Selects the forget set; ``classes`` are fine labels in the ``subclass`` scenario, ``gone`` was forgotten before.

    Raises :class:`UserError` when it is empty, everything, or names unknown ids.
    """
    already = scan(source, "train", gone, columns=("row", "label"))[0] if gone else ALREADY_SCHEMA.empty_table()
    table, counts = _select(source, forget, classes, seed, progress, already["row"].to_numpy())
    again = np.isin(table["row"].to_numpy(), already["row"].to_numpy())
    if again.any() and forget.scenario == "ids":
        ids = table.filter(pa.array(again))["id"].to_pylist()
        shown = ", ".join(repr(i) for i in ids[:5]) + (" …" if len(ids) > 5 else "")
        told = "was" if len(ids) == 1 else "were"
        raise UserError(
            f"forget.ids_file={forget.ids_file}: {shown} {told} forgotten before; leave out what forget.already_file names"
        )
    table = table.filter(pa.array(~again))
    total = int(counts.sum())
    if len(table) == 0:
        named = source.fine or source if forget.scenario == "subclass" else source
        names = ", ".join(repr(named.class_names[c]) for c in classes)
        raise UserError(
            f"the forget set is empty: no training image of {names or 'the request'} among {total:,}; "
            "check forget.classes and data.path"
        )
    if len(table) + len(already) == total:
        whole = "the rest of the training set" if len(already) else "the whole training set"
        raise UserError(
            f"the forget set is {whole} ({len(table):,} images): nothing would be retained; leave some out of the request"
        )
    return Split(table, counts, already)


def _select(
    source: Source,
    forget: ForgetSettings,
    classes: list[int],
    seed: int,
    progress: Callable[[int], None],
    already: np.ndarray,
) -> tuple[pa.Table, np.ndarray]:
    """The rows that the request names (perhaps some of ``already``), and the counts of all labels."""
    if forget.scenario == "class":
        return scan(source, "train", _InLabels(classes), progress)
    if forget.scenario == "subclass":
        keep = _InLabels(classes, "fine")
        return scan(source, "train", keep, progress, columns=("row", "id", "label", "fine"))
    if forget.scenario == "ids":
        wanted = read_ids(str(forget.ids_file))
        table, counts = scan(source, "train", _InIds(frozenset(wanted)), progress)
        _check_ids(source, wanted, table, str(forget.ids_file))
        return table, counts
    everything, counts = scan(source, "train", None, progress, columns=("label",))
    free, labels = np.arange(len(everything), dtype=np.int32), everything["label"].to_numpy()
    if len(already):
        free = np.setdiff1d(free, already.astype(np.int32), assume_unique=True)
        labels = labels[free]
    rows = choose(free, labels, forget, seed)
    return scan(source, "train", _InRows(rows), progress)[0], counts


def scan(
    source: Source,
    split: str,
    keep: Keep | None,
    progress: Callable[[int], None] | None = None,
    columns: tuple[str, ...] = ("row", "id", "label"),
) -> tuple[pa.Table, np.ndarray]:
    """Index rows of ``split`` that ``keep`` takes, by row, and the counts of all labels. Tasks are pieces of a split,
    whose results come in their order; of a small split, this process reads them before a task would have started.
    Without ``keep``, labels are int32: they may be those of millions of rows."""

    from megu_dist.data import stream

    pieces = source.pieces(split)
    reader, chunk = _Scan(source, split, keep, columns), max(1, len(pieces) // 64)
    tables, counts, done = [], np.zeros(len(source.class_names), np.int64), 0
    small = source.num_rows(split) <= SMALL * (QUICK if source.quick_index(split) else 1)
    with stream.in_this_process() if small else nullcontext():
        for batch in stream.blocks(np.arange(len(pieces)), reader, chunk, batch_format="pyarrow"):
            for record in batch.to_pylist():
                tables.append(pa.ipc.open_stream(record["table"]).read_all())
                counts += np.asarray(record["counts"])
                done += record["rows"]
                if progress:
                    progress(done)
    return pa.concat_tables(tables).select(list(columns)), counts


@dataclass(frozen=True)
class _Scan:
    source: Source
    split: str
    keep: Keep | None
    columns: tuple[str, ...]

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        pieces = self.source.pieces(self.split)
        classes = len(self.source.class_names)
        records: list[dict[str, Any]] = []
        for number in batch["row"]:
            index = self.source.index(pieces[number])
            counts = np.bincount(index["label"].to_numpy(), minlength=classes)
            taken = index if self.keep is None else index.filter(pa.array(self.keep(index)))
            sink = pa.BufferOutputStream()
            taken = taken.select(list(self.columns))
            if self.keep is None:
                taken = taken.cast(
                    pa.schema([(f.name, pa.int32() if f.name in LABELS else f.type) for f in taken.schema])
                )
            with pa.ipc.new_stream(sink, taken.schema) as writer:
                writer.write_table(taken)
            records.append({"table": sink.getvalue().to_pybytes(), "counts": counts.tolist(), "rows": len(index)})
        return pa.Table.from_pylist(records)


@dataclass(frozen=True)
class _InLabels:
    labels: list[int]
    column: str = "label"

    def __call__(self, index: pa.Table) -> np.ndarray:
        return np.isin(index[self.column].to_numpy(), self.labels)


@dataclass(frozen=True)
class _InRows:
    rows: np.ndarray

    def __call__(self, index: pa.Table) -> np.ndarray:
        return np.isin(index["row"].to_numpy(), self.rows)


@dataclass(frozen=True)
class _InIds:
    ids: frozenset[str]

    def __call__(self, index: pa.Table) -> np.ndarray:
        return np.fromiter((i in self.ids for i in index["id"].to_pylist()), bool, len(index))


def choose(rows: np.ndarray, labels: np.ndarray, forget: ForgetSettings, seed: int) -> np.ndarray:
    """The random scenario: exactly n rows, those with the smallest seeded hash; per class in proportion if "
    "stratified."""
    n = forget.count if forget.count is not None else round(float(forget.fraction or 0) * len(rows))
    if n >= len(rows):
        key = f"forget.count={n}" if forget.count is not None else f"forget.fraction={forget.fraction}"
        raise UserError(
            f"{key} takes every one of {len(rows)} training images: nothing would be retained; ask for fewer"
        )
    if n < 1:
        raise UserError(
            f"forget.fraction={forget.fraction} of {len(rows)} images is less than one image; ask for more, or "
            "give forget.count"
        )
    if not forget.stratified:
        return _smallest(rows, np.zeros(1, np.int32), np.array([n]), seed)
    parts = (labels[start : start + CHUNK] for start in range(0, len(rows), CHUNK))
    counts = sum(np.bincount(part, minlength=int(labels.max()) + 1) for part in parts)
    share = counts * n / len(rows)
    take = np.floor(share).astype(int)
    largest = np.argsort(take - share, kind="stable")  # largest remainder first
    take[largest[: n - take.sum()]] += 1
    return _smallest(rows, labels, take, seed)


def _smallest(rows: np.ndarray, groups: np.ndarray, take: np.ndarray, seed: int) -> np.ndarray:
    """Of each group g (one for all rows, or one per row) the ``take[g]`` rows with the smallest hash, ascending.

    Part by part, with no more than a few times the result in memory: there may be millions of rows.
    """
    groups = np.broadcast_to(groups, rows.shape)
    held = [np.zeros(0), np.zeros(0, groups.dtype), np.zeros(0, rows.dtype)]  # hash, group, row
    waiting: list[tuple[np.ndarray, ...]] = []
    for start in range(0, len(rows), CHUNK):
        part = slice(start, start + CHUNK)
        waiting.append((hash_uniform(seed, 21, rows[part]), groups[part], rows[part]))
        if start + CHUNK < len(rows) and CHUNK * len(waiting) < take.sum():
            continue
        held = [np.concatenate(columns) for columns in zip(held, *waiting, strict=True)]
        waiting = []
        order = np.lexsort((held[0], held[1]))  # stable: of equal hashes, the first rows
        group = held[1][order]
        place = np.arange(len(order)) - np.searchsorted(group, group)
        order = np.sort(order[place < take[group]])
        held = [column[order] for column in held]
    return np.sort(held[2])


def read_ids(path: str, key: str = "forget.ids_file") -> list[str]:
    """One id per line; blank lines and lines that start with # are skipped. Raises :class:`UserError` when empty."""
    text = Path(path).expanduser().read_text()
    lines = [line.strip() for line in text.splitlines()]
    ids = [line for line in lines if line and not line.startswith("#")]
    if not ids:
        raise UserError(f"{key}={path} names no image; write one image id per line")
    return ids


def _check_ids(source: Source, wanted: list[str], found: pa.Table, path: str) -> None:
    missing = sorted(set(wanted) - set(found["id"].to_pylist()))
    if missing:
        some = source.index(source.pieces("train")[0])["id"].to_pylist()[:1000]
        shown = ", ".join(repr(i) for i in missing[:5]) + (" …" if len(missing) > 5 else "")
        raise UserError(
            f"forget.ids_file={path}: {len(missing)} of {len(set(wanted))} ids are not in the training data "
            f"({shown}); {nearest(missing[0], some)}"
        )


def ids_hash(ids: list[str]) -> str:
    """SHA-256 of the sorted ids: what the forget set is, independent of order."""
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()
