"""Parquet files with encoded images: the Hugging Face layout, or any binary image column beside a label column.

Only footers are read to learn where rows are; rows are read one row group at a time, and only the needed columns.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from megu_dist.config.registry import register
from megu_dist.config.schema import SourceSettings
from megu_dist.data.base import IMAGE_SCHEMA, INDEX_SCHEMA, Piece, Source
from megu_dist.data.columns import MAX_CLASSES, Columns, as_text, image_bytes, read_class_names, resolve
from megu_dist.data.file_splits import files_by_split
from megu_dist.data.files import FileSet, filesystem, is_uri, thread_map
from megu_dist.errors import UserError, nearest

SPLITS = ("train", "test", "validation")
SUFFIXES = (".parquet", ".pq")


@dataclass(kw_only=True)
class ParquetSettings(SourceSettings):
    """Columns and class names; whatever is not given is found by type and name."""

    image_column: str | None = None  # none: the column that holds images
    label_column: str | None = None  # none: the column of classes, or of whole numbers by a usual name
    id_column: str | None = None  # none: ids are split/row number
    class_names_file: str | None = None  # text, one name per line, or a JSON list
    coarse_column: str | None = None  # column of coarse labels, which models then learn (see data/coarse.py)


@dataclass(frozen=True)
class _Layout:
    """Where the rows of a split are: its files and, per row group, file number, number in that file, first rows."""

    files: FileSet
    file_of: np.ndarray
    part_of: np.ndarray
    first_in_file: np.ndarray
    ends: np.ndarray  # row number in the split after each group's last row

    def first(self, group: int) -> int:
        return int(self.ends[group - 1]) if group else 0


@register("data", "parquet", ParquetSettings)
class ParquetSource(Source):
    """Parquet files: one, a folder, a glob or a URI; Hugging Face layout or plain columns."""

    def __init__(self, settings: ParquetSettings) -> None:
        if not settings.path:
            raise UserError("data.path is not set: give a Parquet file, a folder, a glob or a URI")
        files = files_by_split(settings.path, settings.test_path, SUFFIXES)
        first_file = files["train"].path(0)
        schema = _footer_of(files["train"], 0).schema.to_arrow_schema()
        self._columns: Columns = resolve(
            schema, first_file, settings.image_column, settings.label_column, settings.id_column
        )
        self._layouts = {
            split: _read_layout(files[split], self._columns, first_file) for split in SPLITS if split in files
        }
        if not self.num_rows("train"):
            raise UserError(f"no rows in {files['train'].root}; give files that hold training images as data.path")
        # What the user states goes before what the files state.
        stated = read_class_names(settings.class_names_file) if settings.class_names_file else self._columns.names
        self._class_names = stated or self._scan_class_names()
        described = [[split, layout.files.stamps()] for split, layout in self._layouts.items()]
        used = [self._columns.image, self._columns.label, self._columns.id, stated]
        self._fingerprint = hashlib.sha256(json.dumps([described, used]).encode()).hexdigest()

    @property
    def class_names(self) -> list[str]:
        return self._class_names

    @property
    def splits(self) -> list[str]:
        return list(self._layouts)

    def fingerprint(self) -> str:
        return self._fingerprint

    def pieces(self, split: str) -> list[Piece]:
        layout = self._layout(split)
        firsts = np.concatenate([[0], layout.ends[:-1]]) if len(layout.ends) else layout.ends
        groups = zip(firsts, layout.ends, layout.file_of, layout.part_of, strict=True)
        paths = [layout.files.path(number) for number in range(len(layout.files.names))]
        return [Piece(split, int(first), int(end - first), paths[file], int(part)) for first, end, file, part in groups]

    def num_rows(self, split: str) -> int:
        ends = self._layout(split).ends
        return int(ends[-1]) if len(ends) else 0

    def quick_index(self, split: str) -> bool:
        return not is_uri(self._layout(split).files.root)

    def encoded_bytes(self, split: str) -> float:
        return float(self._layout(split).files.sizes.sum()) / max(1, self.num_rows(split))

    def locality(self, split: str, rows: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._layout(split).ends, rows, side="right")

    def index(self, piece: Piece) -> pa.Table:
        return self._read(piece.split, np.arange(piece.first, piece.first + piece.count), images=False)

    def gather(self, split: str, rows: np.ndarray) -> pa.Table:
        return self._read(split, rows, images=True)

    def schema(self) -> Any:
        """Columns and metadata of the first training file."""
        return _footer_of(self._layouts["train"].files, 0).schema.to_arrow_schema()

    def beside_labels(self, split: str, column: str) -> Iterator[pa.Table]:
        """``label`` (class number) and ``value`` (``column`` as stored) of every row, a table per row group."""
        layout = self._layout(split)
        for file, part, first in zip(layout.file_of, layout.part_of, layout.first_in_file, strict=True):
            table = _read_columns(layout.files, int(file), int(part), [self._columns.label, column])
            rows = np.arange(first, first + len(table))
            labels = self._labels(table.column(self._columns.label), layout.files.path(int(file)), rows)
            yield pa.table({"label": labels, "value": table.column(column)})

    def _layout(self, split: str) -> _Layout:
        if split not in self._layouts:
            raise UserError(f"the data has no split {split!r}: {nearest(split, self._layouts)}")
        return self._layouts[split]

    def _read(self, split: str, rows: np.ndarray, images: bool) -> pa.Table:
        """Rows in the given order; each row group that holds some of them is read once."""
        layout = self._layout(split)
        rows = np.asarray(rows, dtype=np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= self.num_rows(split)):
            raise IndexError(f"split {split!r} has {self.num_rows(split)} rows, not {rows.min()} … {rows.max()}")
        schema = IMAGE_SCHEMA if images else INDEX_SCHEMA
        if not len(rows):
            return schema.empty_table()
        wanted, order = np.unique(rows, return_inverse=True)
        groups, starts = np.unique(self.locality(split, wanted), return_index=True)
        tasks = list(zip(groups.tolist(), np.split(wanted, starts[1:]), strict=True))
        tables = thread_map(
            lambda task: self._read_group(split, task[0], task[1], images), tasks, is_uri(layout.files.root)
        )
        table = pa.concat_tables(tables)
        return table if np.array_equal(order, np.arange(len(rows))) else table.take(pa.array(order.ravel()))

    def _read_group(self, split: str, group: int, rows: np.ndarray, images: bool) -> pa.Table:
        """Rows ``rows`` (sorted) of one row group."""
        layout, columns = self._layout(split), self._columns
        names = [columns.label, columns.id, columns.image if images else None]
        file = int(layout.file_of[group])
        table = _read_columns(layout.files, file, int(layout.part_of[group]), [name for name in names if name])
        inside = rows - layout.first(group)
        if len(rows) != len(table):
            table = table.take(pa.array(inside))
        path, in_file = layout.files.path(file), inside + layout.first_in_file[group]
        out = {
            "row": pa.array(rows, pa.int64()),
            "id": self._ids(table, split, rows, path, in_file),
            "label": self._labels(table.column(columns.label), path, in_file),
        }
        if images:
            out["image"] = image_bytes(table.column(columns.image), layout.files.root, path, in_file)
        return pa.table(out, schema=IMAGE_SCHEMA if images else INDEX_SCHEMA)

    def _ids(self, table: pa.Table, split: str, rows: np.ndarray, path: str, in_file: np.ndarray) -> Any:
        if self._columns.id is None:
            return pa.array([f"{split}/{row:08d}" for row in rows.tolist()], pa.string())
        ids = as_text(table.column(self._columns.id))
        if ids.null_count:
            bad = int(np.flatnonzero(ids.is_null().to_numpy())[0])
            raise UserError(
                f"row {in_file[bad]} of {path} has no id in column {self._columns.id!r}; each row must have "
                "one (or leave data.id_column out)"
            )
        return ids

    def _labels(self, column: Any, path: str, in_file: np.ndarray) -> Any:
        """Labels as class numbers; raises on one outside the classes."""
        count = len(self._class_names)
        if self._columns.text_labels:
            labels = pc.index_in(as_text(column), value_set=pa.array(self._class_names, pa.string())).cast(pa.int64())
            valid = labels.is_valid().to_numpy()
        else:
            labels = column.cast(pa.int64(), safe=False)
            numbers = pc.fill_null(labels, -1).to_numpy()
            valid = (numbers >= 0) & (numbers < count)
        if not valid.all():
            bad = int(np.flatnonzero(~valid)[0])
            value = column[bad].as_py()
            known = nearest(value, self._class_names) if isinstance(value, str) else f"labels are 0 … {count - 1}"
            raise UserError(
                f"row {in_file[bad]} of {path}: label {value!r} is none of the {count} classes "
                f"({known}); check data.label_column and data.class_names_file"
            )
        return labels

    def _scan_class_names(self) -> list[str]:
        """Class names from the labels themselves: training strings, sorted, or the range of all integers."""
        splits = ["train"] if self._columns.text_labels else self.splits
        sets = [self._layouts[split].files for split in splits]
        tasks = [(files, number) for files in sets for number in range(len(files.names))]
        found = thread_map(lambda task: _distinct(*task, self._columns), tasks, parallel=True)
        values = {value for part in found for value in part if value is not None}
        if self._columns.text_labels:
            return sorted(values)
        top = max(values, default=-1)
        if not 0 <= top < MAX_CLASSES:
            raise UserError(
                f"column {self._columns.label!r} goes up to {top}, which is no class label: set data.label_column"
            )
        return [str(label) for label in range(top + 1)]


def _read_layout(files: FileSet, columns: Columns, first_file: str) -> _Layout:
    """Row counts of all row groups, from the footers; checks that every file has the columns."""

    def inspect(number: int) -> list[int]:
        footer = _footer_of(files, number)
        columns.check(footer.schema.to_arrow_schema(), files.path(number), first_file)
        return [footer.row_group(part).num_rows for part in range(footer.num_row_groups)]

    rows = []
    for file, counts in enumerate(thread_map(inspect, range(len(files.names)), parallel=True)):
        firsts = np.cumsum([0, *counts])
        rows += [(file, part, firsts[part], firsts[part + 1]) for part, count in enumerate(counts) if count]
    table = np.array(rows, dtype=np.int64).reshape(-1, 4)
    return _Layout(
        files, table[:, 0].copy(), table[:, 1].copy(), table[:, 2].copy(), np.cumsum(table[:, 3] - table[:, 2])
    )


@lru_cache(maxsize=512)
def _footer(root: str, path: str, size: int, mtime: int) -> Any:
    """Metadata of a file, kept per process; a rewritten file has another size or time, hence another entry."""
    try:
        with filesystem(root)[0].open_input_file(path) as handle:
            return pq.read_metadata(handle)
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read {path} as Parquet: {error}; give whole Parquet files, or use another data="
        ) from error


def _footer_of(files: FileSet, number: int) -> Any:
    return _footer(files.root, files.path(number), int(files.sizes[number]), int(files.mtimes[number]))


def _read_columns(files: FileSet, number: int, part: int, columns: list[str]) -> Any:
    """Columns of one row group."""
    path, footer = files.path(number), _footer_of(files, number)
    try:
        with filesystem(files.root)[0].open_input_file(path) as handle:
            file = pq.ParquetFile(handle, metadata=footer)
            return file.read_row_group(part, columns=list(dict.fromkeys(columns)), use_threads=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read row group {part} of {path}: {error}; the file is damaged: fetch or write it again"
        ) from error


def _distinct(files: FileSet, number: int, columns: Columns) -> set[Any]:
    """Distinct text labels of a file, or its largest integer label."""
    found: set[Any] = set()
    for part in range(_footer_of(files, number).num_row_groups):
        values = _read_columns(files, number, part, [columns.label]).column(columns.label)
        found |= set(pc.unique(as_text(values)).to_pylist() if columns.text_labels else [pc.max(values).as_py()])
    return found
