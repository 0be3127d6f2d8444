"""Writes small image data sets in the layouts that users have, and reads sources back."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from megu_dist.data.base import IMAGE_SCHEMA, INDEX_SCHEMA, Source
from megu_dist.data.sources.image_folder import ImageFolderSettings, ImageFolderSource
from megu_dist.data.sources.parquet import ParquetSettings, ParquetSource
from megu_dist.data.sources.webdataset import WebDatasetSettings, WebDatasetSource

CLASSES = ["cat", "dog", "frog"]
HF_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def encode(value: int) -> bytes:
    """A 4×4 PNG filled with ``value``."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), value % 256, np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def decode(content: bytes) -> int:
    """The value that :func:`encode` wrote."""
    return int(np.asarray(Image.open(io.BytesIO(content)))[0, 0])


def write_hf(
    path: Path, values: Sequence[int], rows: int = 4, names: Sequence[str] | None = CLASSES, **extra: Any
) -> None:
    """Parquet in the Hugging Face layout: image ``v`` is filled with v and has label v mod 3."""
    schema = pa.schema([("img", HF_IMAGE), ("label", pa.int64())])
    if names is not None:
        features = {"img": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(names)}}
        schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    images = [{"bytes": encode(value), "path": None} for value in values]
    table = pa.table({"img": images, "label": [value % 3 for value in values]}, schema=schema)
    for name, column in extra.items():
        table = table.append_column(name, pa.array(column))
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=rows)


def write_images(root: Path, names: str) -> None:
    """Image files, filled with their position in the space-separated ``names``."""
    for number, name in enumerate(names.split()):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encode(number))


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    """A tar file with the given members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def write_shard(path: Path, values: Sequence[int], **extra: bytes) -> None:
    """A shard of samples ``%06d``: image v is filled with v and has label v mod 3 in its ``.cls``."""
    members: dict[str, bytes] = {}
    for value in values:
        members |= {f"{value:06d}.png": encode(value), f"{value:06d}.cls": str(value % 3).encode()}
    write_tar(path, members | extra)


def write_layouts(root: Path, train: list[int], test: list[int]) -> None:
    """The same images as ``root/parquet``, ``root/image_folder`` and ``root/webdataset``, two files for ten and more."""
    write_hf(root / "parquet" / "train-0.parquet", train[:10])
    write_hf(root / "parquet" / "train-1.parquet", train[10:])
    write_hf(root / "parquet" / "test-0.parquet", test)
    for split, some in (("train", train), ("test", test)):
        for value in some:
            file = root / "image_folder" / split / CLASSES[value % 3] / f"{value:03d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encode(value))
    write_shard(root / "webdataset" / "train-000.tar", train[:10])
    write_shard(root / "webdataset" / "train-001.tar", train[10:])
    write_shard(root / "webdataset" / "train-002.tar", [])
    write_shard(root / "webdataset" / "test-000.tar", test)
    (root / "webdataset" / "classes.txt").write_text("\n".join(CLASSES))


def parquet(path: Path | str, **settings: Any) -> ParquetSource:
    """The Parquet source of ``path``."""
    return ParquetSource(ParquetSettings(name="parquet", path=str(path), **settings))


def folder_source(path: Path | str, **settings: Any) -> ImageFolderSource:
    """The image-folder source of ``path``."""
    return ImageFolderSource(ImageFolderSettings(name="image_folder", path=str(path), **settings))


def webdataset(path: Path | str, cache: Path, **settings: Any) -> WebDatasetSource:
    """The WebDataset source of ``path``."""
    return WebDatasetSource(WebDatasetSettings(name="webdataset", path=str(path), cache_dir=str(cache), **settings))


def values(source: Source, split: str, rows: list[int] | None = None) -> list[int]:
    """What the images of some rows (none: all) are filled with."""
    wanted = list(range(source.num_rows(split))) if rows is None else rows
    table = source.gather(split, np.array(wanted, dtype=np.int64))
    assert table.schema.equals(IMAGE_SCHEMA)
    assert table["row"].to_pylist() == wanted
    return [decode(content) for content in table["image"].to_pylist()]


def full_index(source: Source, split: str) -> pa.Table:
    """The index of all pieces of a split."""
    table = pa.concat_tables([source.index(piece) for piece in source.pieces(split)])
    assert table.schema.equals(INDEX_SCHEMA)
    return table
