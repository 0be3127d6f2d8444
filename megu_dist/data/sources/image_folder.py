"""Image files in one folder per class: ``path/train/<class>/*`` and ``path/test/<class>/*``, or ``path/<class>/*``."""

from __future__ import annotations

import hashlib
import json
import pickle
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from megu_dist.config.registry import register
from megu_dist.config.schema import SourceSettings
from megu_dist.data.base import IMAGE_SCHEMA, INDEX_SCHEMA, Piece, Source
from megu_dist.data.files import FileSet, list_files, read_bytes, thread_map
from megu_dist.errors import UserError, nearest

PIECE_FILES = 1024
SPLIT_FOLDERS = {"train": "train", "test": "test", "val": "validation", "validation": "validation"}


@dataclass(kw_only=True)
class ImageFolderSettings(SourceSettings):
    """Which files are images."""

    extensions: list[str] = field(  # of files that are images
        default_factory=lambda: ["jpg", "jpeg", "png", "bmp", "gif", "webp", "ppm", "tif", "tiff"]
    )


@dataclass(frozen=True)
class _Images:
    """The image files of a split, sorted by id."""

    root: str
    base: str
    prefix: str  # of ids: tells files of `test_path` from those of `path`
    names: list[str]
    labels: np.ndarray
    mean_bytes: float  # of a file


@register("data", "image_folder", ImageFolderSettings)
class ImageFolderSource(Source):
    """Image files in one folder per class, local or at an fsspec/Arrow URI."""

    def __init__(self, settings: ImageFolderSettings) -> None:
        if not settings.path:
            raise UserError("data.path is not set: give a folder that holds one folder of images per class")
        suffixes = tuple("." + extension.lower().lstrip(".") for extension in settings.extensions)
        files = list_files(settings.path, suffixes, "data.path")
        test = list_files(settings.test_path, suffixes, "data.test_path") if settings.test_path else None
        splits = _by_split(files.without(test))
        if test is not None:
            splits["test"] = test
        if not splits["train"].names:
            raise UserError(
                f"data.test_path takes every image of data.path={settings.path}: none is left to train on; "
                "give other folders"
            )
        depth = {split: 1 if _has_split_folders(files) and found is not test else 0 for split, found in splits.items()}
        self._class_names = _classes(splits["train"], depth["train"])
        self._images = {
            split: _images(found, depth[split], self._class_names, "test/" if found is test else "")
            for split, found in splits.items()
        }
        stamps = [[split, found.stamps()] for split, found in splits.items()]
        self._fingerprint = hashlib.sha256(json.dumps(stamps).encode()).hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        """Sorted file names compress well; a million of them travel to every worker."""
        return {**self.__dict__, "_images": zlib.compress(pickle.dumps(self._images), 1)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _images=pickle.loads(zlib.decompress(state["_images"])))

    @property
    def class_names(self) -> list[str]:
        return self._class_names

    @property
    def splits(self) -> list[str]:
        return [split for split in ("train", "test", "validation") if split in self._images]

    def fingerprint(self) -> str:
        return self._fingerprint

    def pieces(self, split: str) -> list[Piece]:
        images = self._split(split)
        total = len(images.names)
        return [
            Piece(split, first, min(PIECE_FILES, total - first), images.base, first // PIECE_FILES)
            for first in range(0, total, PIECE_FILES)
        ]

    def num_rows(self, split: str) -> int:
        return len(self._split(split).names)

    def quick_index(self, split: str) -> bool:
        return True

    def encoded_bytes(self, split: str) -> float:
        return self._split(split).mean_bytes

    def locality(self, split: str, rows: np.ndarray) -> np.ndarray:
        return np.asarray(rows) // PIECE_FILES

    def index(self, piece: Piece) -> pa.Table:
        rows = np.arange(piece.first, piece.first + piece.count)
        return pa.table(self._columns(piece.split, rows), schema=INDEX_SCHEMA)

    def gather(self, split: str, rows: np.ndarray) -> pa.Table:
        images, rows = self._split(split), np.asarray(rows, dtype=np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= len(images.names)):
            raise IndexError(f"split {split!r} has {len(images.names)} rows, not {rows.min()} … {rows.max()}")
        if not len(rows):
            return IMAGE_SCHEMA.empty_table()

        def read(row: int) -> bytes:
            path = f"{images.base.rstrip('/')}/{images.names[row]}"
            try:
                return read_bytes(images.root, path)
            except OSError as error:
                raise UserError(f"cannot read image {path}: {error}; mend it, or set data.max_bad_fraction") from error

        wanted = np.unique(rows).tolist()
        content = dict(zip(wanted, thread_map(read, wanted), strict=True))
        image = pa.array([content[row] for row in rows.tolist()], pa.binary())
        return pa.table({**self._columns(split, rows), "image": image}, schema=IMAGE_SCHEMA)

    def _columns(self, split: str, rows: np.ndarray) -> dict[str, Any]:
        images = self._split(split)
        ids = pa.array([images.prefix + images.names[row] for row in rows.tolist()], pa.string())
        return {"row": pa.array(rows, pa.int64()), "id": ids, "label": pa.array(images.labels[rows], pa.int64())}

    def _split(self, split: str) -> _Images:
        if split not in self._images:
            raise UserError(f"the data has no split {split!r}: {nearest(split, self._images)}")
        return self._images[split]


def _has_split_folders(files: FileSet) -> bool:
    return any(name.startswith("train/") for name in files.names)


def _by_split(files: FileSet) -> dict[str, FileSet]:
    if not _has_split_folders(files):
        return {"train": files}
    words = [SPLIT_FOLDERS.get(name.split("/")[0]) for name in files.names]
    return {split: files.where([word == split for word in words]) for split in sorted({word for word in words if word})}


def _classes(files: FileSet, depth: int) -> list[str]:
    names = sorted({parts[depth] for name in files.names if len(parts := name.split("/")) > depth + 1})
    if not names:
        raise UserError(
            f"{files.root} holds images but no class folders: make one folder per class, as in "
            "train/<class>/image.jpg or <class>/image.jpg"
        )
    return names


def _images(files: FileSet, depth: int, classes: list[str], prefix: str) -> _Images:
    """Labels by folder. Images beside the class folders (a cover picture, say) belong to no class and are left out."""
    numbers = {name: number for number, name in enumerate(classes)}
    kept, labels = [], []
    for name in files.names:
        parts = name.split("/")
        if len(parts) <= depth + 1:
            continue
        if parts[depth] not in numbers:
            folder = "/".join(parts[: depth + 1])
            raise UserError(
                f"class folder {folder!r} of {files.root} has no training images: {nearest(parts[depth], classes)}"
            )
        kept.append(name)
        labels.append(numbers[parts[depth]])
    mean_bytes = float(files.sizes.mean()) if len(files.sizes) else 0.0
    return _Images(files.root, files.base, prefix, kept, np.array(labels, dtype=np.int32), mean_bytes)
