"""WebDataset shards: tar files of samples ``KEY.jpg`` (jpeg, png, webp) with ``KEY.cls``, ``KEY.txt`` or ``KEY.json``.

Tar headers and labels are read once and kept as an index (:mod:`megu_dist.data.tar_index`); images are then read by
their byte ranges, so that shards are as random-access as the other sources. Nothing pickled is ever opened.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from megu_dist.config.registry import register
from megu_dist.config.schema import SourceSettings
from megu_dist.data.base import IMAGE_SCHEMA, INDEX_SCHEMA, Piece, Source
from megu_dist.data.columns import MAX_CLASSES, class_names_at, read_class_names
from megu_dist.data.file_splits import files_by_split
from megu_dist.data.files import FileSet, filesystem, is_uri, thread_map
from megu_dist.data.tar_index import Shard, index_of
from megu_dist.errors import UserError, nearest

SPLITS = ("train", "test", "validation")
SIDECARS = ("classes.txt", "classes.json", "classnames.txt")  # beside the shards
NUMBER = re.compile(r"-?[0-9]+")  # a negative one is no class, but no name either
GAP, SPAN = 64 << 10, 8 << 20  # bytes: images nearer to each other than GAP are read together, up to about SPAN


@dataclass(kw_only=True)
class WebDatasetSettings(SourceSettings):
    """Where labels and class names are; ``path`` also takes ``train-{000..099}.tar`` and a text file of shards."""

    label_key: str | None = (
        None  # key in KEY.json, or one of cls and txt; none: KEY.cls, KEY.txt or "label" in KEY.json
    )
    class_names_file: str | None = None  # text, one name per line, or a JSON list; none: classes.txt beside the shards


@dataclass(frozen=True)
class _Layout:
    """The shards of a split that hold samples."""

    files: FileSet
    prefix: str  # of ids: tells shards of `test_path` from those of `path`
    ends: np.ndarray  # row number in the split after each shard's last row

    def first(self, shard: int) -> int:
        return int(self.ends[shard - 1]) if shard else 0


@register("data", "webdataset", WebDatasetSettings)
class WebDatasetSource(Source):
    """WebDataset tar shards: a folder, a glob, a brace range, a list of shards or a URI."""

    def __init__(self, settings: WebDatasetSettings) -> None:
        if not settings.path:
            raise UserError("data.path is not set: give a folder of .tar shards, a pattern or a URI")
        self._cache = str(Path(settings.cache_dir).expanduser().absolute() / "webdataset-v1")
        self._label_key = settings.label_key
        files = files_by_split(settings.path, settings.test_path, (".tar",))
        self._layouts: dict[str, _Layout] = {}
        labels: dict[str, list[set[str]]] = {}
        for split in (split for split in SPLITS if split in files):
            prefix = "test/" if split == "test" and settings.test_path else ""
            self._layouts[split], labels[split] = self._read_layout(files[split], prefix)
        if not self.num_rows("train"):
            raise UserError(
                f"no samples in the shards of {settings.path}; give shards with training images as data.path"
            )
        stated = _stated_names(settings.class_names_file, files["train"])
        self._class_names, self._by_name = _classes(labels, stated)
        self._check_labels(labels)
        described = [[split, layout.files.stamps()] for split, layout in self._layouts.items()]
        content = json.dumps([described, self._label_key, stated])
        self._fingerprint = hashlib.sha256(content.encode()).hexdigest()

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
        paths = [layout.files.path(number) for number in range(len(layout.files.names))]
        return [
            Piece(split, layout.first(number), int(layout.ends[number]) - layout.first(number), path, number)
            for number, path in enumerate(paths)
        ]

    def num_rows(self, split: str) -> int:
        ends = self._layout(split).ends
        return int(ends[-1]) if len(ends) else 0

    def encoded_bytes(self, split: str) -> float:
        return float(self._layout(split).files.sizes.sum()) / max(1, self.num_rows(split))

    def locality(self, split: str, rows: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._layout(split).ends, rows, side="right")

    def index(self, piece: Piece) -> pa.Table:
        rows = np.arange(piece.first, piece.first + piece.count)
        return pa.table(self._columns(piece.split, piece.part, rows), schema=INDEX_SCHEMA)

    def gather(self, split: str, rows: np.ndarray) -> pa.Table:
        layout, rows = self._layout(split), np.asarray(rows, dtype=np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= self.num_rows(split)):
            raise IndexError(f"split {split!r} has {self.num_rows(split)} rows, not {rows.min()} … {rows.max()}")
        if not len(rows):
            return IMAGE_SCHEMA.empty_table()
        wanted, order = np.unique(rows, return_inverse=True)
        shards, starts = np.unique(self.locality(split, wanted), return_index=True)
        parts = list(zip(shards.tolist(), np.split(wanted, starts[1:]), strict=True))
        spans = [(shard, span) for shard, part in parts for span in self._spans(split, shard, part)]
        images = thread_map(lambda task: self._read(split, *task), spans, is_uri(layout.files.root))
        table = pa.concat_tables(pa.table(self._columns(split, *part), schema=INDEX_SCHEMA) for part in parts)
        column = pa.array([image for span in images for image in span], pa.binary())
        table = table.append_column(IMAGE_SCHEMA.field("image"), column)
        return table if np.array_equal(order, np.arange(len(rows))) else table.take(pa.array(order.ravel()))

    def _layout(self, split: str) -> _Layout:
        if split not in self._layouts:
            raise UserError(f"the data has no split {split!r}: {nearest(split, self._layouts)}")
        return self._layouts[split]

    def _read_layout(self, files: FileSet, prefix: str) -> tuple[_Layout, list[set[str]]]:
        """Row counts and distinct labels of all shards; one that holds no sample is left out."""

        def inspect(number: int) -> tuple[int, set[str]]:
            table = index_of(_shard(files, number, self._label_key), self._cache)
            return len(table), set(pc.unique(table["label"]).to_pylist())

        found = thread_map(inspect, range(len(files.names)))
        counts = [count for count, _ in found if count]
        kept = files.where(count > 0 for count, _ in found)
        return _Layout(kept, prefix, np.cumsum(counts, dtype=np.int64)), [labels for count, labels in found if count]

    def _check_labels(self, labels: dict[str, list[set[str]]]) -> None:
        """Every label must be a class: told before anything runs, with the shard that it is in."""
        count = len(self._class_names)
        known = set(self._class_names)
        for split, of_shards in labels.items():
            for number, found in enumerate(of_shards):
                for label in sorted(found):
                    numbered = NUMBER.fullmatch(label) and 0 <= int(label) < count
                    if label in known if self._by_name else numbered:
                        continue
                    hint = nearest(label, self._class_names) if self._by_name else f"labels are 0 … {count - 1}"
                    raise UserError(
                        f"{self._layouts[split].files.path(number)}: label {label!r} is none of the {count} classes "
                        f"({hint}); check data.label_key and data.class_names_file"
                    )

    def _index(self, split: str, shard: int) -> pa.Table:
        return index_of(_shard(self._layout(split).files, shard, self._label_key), self._cache)

    def _columns(self, split: str, shard: int, rows: np.ndarray) -> dict[str, Any]:
        """Row, id and label of ascending rows of one shard."""
        layout = self._layout(split)
        table = self._index(split, shard).take(pa.array(rows - layout.first(shard)))
        name = layout.prefix + layout.files.names[shard].removesuffix(".tar")
        ids = pa.array([f"{name}/{key}" for key in table["key"].to_pylist()], pa.string())
        if self._by_name:
            labels = pc.index_in(table["label"], value_set=pa.array(self._class_names, pa.string())).cast(pa.int64())
        else:
            labels = table["label"].cast(pa.int64())
        return {"row": pa.array(rows, pa.int64()), "id": ids, "label": labels}

    def _spans(self, split: str, shard: int, rows: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Offsets and sizes of ascending rows of one shard, cut where reading on would be a waste."""
        table = self._index(split, shard).take(pa.array(rows - self._layout(split).first(shard)))
        offsets, sizes = table["offset"].to_numpy(), table["size"].to_numpy()
        cuts = (offsets[1:] - (offsets + sizes)[:-1] > GAP) | (np.diff(offsets // SPAN) > 0)
        where = np.flatnonzero(cuts) + 1
        return list(zip(np.split(offsets, where), np.split(sizes, where), strict=True))

    def _read(self, split: str, shard: int, span: tuple[np.ndarray, np.ndarray]) -> list[bytes]:
        """The images of one span, in one ranged read."""
        (offsets, sizes), files = span, self._layout(split).files
        low, high = int(offsets[0]), int(offsets[-1] + sizes[-1])
        try:
            data = _handle(_shard(files, shard, None)).read_at(high - low, low)
        except OSError as error:
            raise UserError(f"cannot read {files.path(shard)}: {error}; check the path and who may read it") from error
        if len(data) != high - low:
            raise UserError(
                f"{files.path(shard)} ends at byte {low + len(data):,}: it was cut short after it was indexed; "
                "fetch or write it again"
            )
        return [data[start : start + size] for start, size in zip(offsets - low, sizes, strict=True)]


def _shard(files: FileSet, number: int, label_key: str | None) -> Shard:
    return Shard(files.root, files.path(number), int(files.sizes[number]), int(files.mtimes[number]), label_key)


@lru_cache(maxsize=64)
def _handle(shard: Shard) -> Any:
    """An open shard: opening costs a request of its own in object storage. Reads at an offset are thread-safe."""
    return filesystem(shard.root)[0].open_input_file(shard.path)


def _stated_names(file: str | None, shards: FileSet) -> list[str] | None:
    """Class names from the named file, else from a sidecar beside the shards or in the folder above all of them."""
    if file:
        return read_class_names(file)
    folders = dict.fromkeys([posixpath.dirname(shards.path(0)), shards.base.rstrip("/")])
    paths = [f"{folder}/{name}" for folder in folders for name in SIDECARS]
    if shards.root.startswith(("http://", "https://")):
        return None  # no listing there, and a server may answer anything
    for info in filesystem(shards.root)[0].get_file_info(paths):
        if info.type == pafs.FileType.File:
            return class_names_at(shards.root, info.path, "class names beside the shards")
    return None


def _classes(labels: dict[str, list[set[str]]], stated: list[str] | None) -> tuple[list[str], bool]:
    """Class names, and whether labels are such names (else they are numbers)."""
    train = set().union(*labels["train"])
    every = set().union(*(found for of_shards in labels.values() for found in of_shards))
    numbers = all(NUMBER.fullmatch(label) for label in train)
    if stated is not None:
        return stated, not numbers or train <= set(stated)
    if not numbers:
        return sorted(train), True
    top = max(int(label) for label in every if NUMBER.fullmatch(label))
    if top >= MAX_CLASSES:
        raise UserError(f"labels go up to {top}, which is no class label: set data.label_key")
    return [str(label) for label in range(top + 1)], False
