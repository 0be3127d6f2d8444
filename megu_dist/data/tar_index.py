"""What a tar shard of samples holds and where: keys, labels, and the byte range of each image.

Built by reading headers and label members only, seeking over the images; kept as Parquet under the shard's name, size
and modification time. A process without that file (another node) builds it again for the shards that it reads.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import posixpath
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from megu_dist.data.files import filesystem
from megu_dist.errors import UserError, nearest

VERSION = 1
IMAGES = ("jpg", "jpeg", "png", "webp")
LABELS = ("cls", "txt", "json")  # in the order in which they are looked for
PICKLES = ("pyd", "pkl", "pickle")
READ_AHEAD = 8 << 10  # bytes a read: a header, a label and the next header come together from object storage
MAX_LABEL_BYTES = 1 << 20
SCHEMA = pa.schema([("key", pa.string()), ("offset", pa.int64()), ("size", pa.int64()), ("label", pa.string())])


@dataclass(frozen=True)
class Shard:
    """One tar file, and what its labels are called."""

    root: str  # what its file system is opened from
    path: str
    size: int
    mtime: int
    label_key: str | None = None


@lru_cache(maxsize=256)
def index_of(shard: Shard, cache: str) -> pa.Table:
    """The samples of a shard in their order (:data:`SCHEMA`), from ``cache`` or from the shard."""
    identity = [VERSION, shard.path, shard.size, shard.mtime, shard.label_key, filesystem(shard.root)[0].type_name]
    file = Path(cache) / f"{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]}.parquet"
    if file.is_file():
        return pq.read_table(file)
    table = read_index(shard)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.{os.getpid()}-{threading.get_ident()}")
        pq.write_table(table, temporary, compression="zstd")
        temporary.replace(file)
    except OSError as error:
        raise UserError(f"cannot write to data.cache_dir: {error}; set data.cache_dir to another folder") from error
    return table


def read_index(shard: Shard) -> pa.Table:
    """The samples of a shard, from its headers and label members."""
    samples: list[_Sample] = []
    seen: set[str] = set()
    extensions: set[str] = set()
    try:
        with filesystem(shard.root)[0].open_input_file(shard.path) as file:
            stream = io.BufferedReader(file, READ_AHEAD)
            for key, extension, offset, size in _members(stream, shard):
                extensions.add(extension)
                if not samples or samples[-1].key != key:
                    if key in seen:
                        raise UserError(
                            f"{shard.path} holds sample {key!r} twice, or its members are not side by side; "
                            "write the shard again"
                        )
                    seen.add(key)
                    samples.append(_Sample(key))
                samples[-1].add(extension, offset, size, stream, shard)
    except (OSError, ValueError, tarfile.TarError) as error:
        raise UserError(
            f"cannot read {shard.path} as an uncompressed tar file: {error}; write it again, or unpack a "
            "compressed one (gunzip)"
        ) from error
    images = [sample for sample in samples if sample.size is not None]
    if samples and not images:
        shown = ", ".join("." + e for e in sorted(extensions)[:10])
        raise UserError(
            f"{shard.path} holds no image (KEY.{', KEY.'.join(IMAGES)}); its members end in {shown}; write "
            "images with one of those endings"
        )
    rows = [(one.key, one.offset, one.size, one.label(shard)) for one in images]
    return pa.table([list(column) for column in zip(*rows, strict=True)] or [[]] * 4, schema=SCHEMA)


def _members(stream: io.BufferedReader, shard: Shard) -> Iterator[tuple[str, str, int, int]]:
    """Key, extension, offset and size of each file; raises on a damaged end, where tarfile stops in silence."""
    tar = tarfile.open(fileobj=stream, mode="r:")  # noqa: SIM115  (closing it would do nothing: the stream is not its own)
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # else it keeps every header
        folder, name = posixpath.split(member.name.removeprefix("./"))
        if not member.isreg() or name.startswith("."):
            continue
        stem, _, extension = name.partition(".")
        extension = extension.lower()
        if extension.rsplit(".")[-1] in PICKLES:
            raise UserError(
                f"{shard.path} holds pickled members ({member.name}), which can run any code and are never opened: "
                "write labels as KEY.cls, KEY.txt or KEY.json"
            )
        yield posixpath.join(folder, stem), extension, member.offset_data, member.size
    stream.seek(tar.offset)
    if stream.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise UserError(
            f"{shard.path} is damaged at byte {tar.offset:,}: no tar header where one is due; fetch or write it again"
        )


@dataclass
class _Sample:
    key: str
    offset: int | None = None
    size: int | None = None
    labels: dict[str, bytes] = field(default_factory=dict)

    def add(self, extension: str, offset: int, size: int, stream: io.BufferedReader, shard: Shard) -> None:
        if extension in IMAGES:
            if self.size is not None:
                raise UserError(f"sample {self.key!r} of {shard.path} has two images; keep one")
            self.offset, self.size = offset, size
        elif extension in LABELS:
            if size > MAX_LABEL_BYTES:
                raise UserError(
                    f"{self.key}.{extension} of {shard.path} has {size:,} bytes: too large for a label; write "
                    "the class alone"
                )
            stream.seek(offset)
            self.labels[extension] = stream.read(size)

    def label(self, shard: Shard) -> str:
        """The label as text: a number or a class name."""
        where = f"sample {self.key!r} of {shard.path}"
        wanted = shard.label_key
        plain = [e for e in ("cls", "txt") if e in self.labels and wanted in (None, e)]
        if plain:
            text = self.labels[plain[0]].decode("utf-8", "replace").strip()
        elif "json" in self.labels:
            text = _from_json(self.labels["json"], wanted or "label", where)
        else:
            one = " or ".join(f"KEY.{e}" for e in LABELS) + (f" with {wanted!r} in it" if wanted else "")
            raise UserError(f"{where} has no label: write {one}, or set data.label_key")
        if not text:
            raise UserError(f"{where} has an empty label; write the class number or name")
        return text


def _from_json(content: bytes, key: str, where: str) -> str:
    try:
        data: Any = json.loads(content)
    except ValueError as error:
        raise UserError(f"{where}: its JSON cannot be read: {error}; write the shard again") from error
    if not isinstance(data, dict) or key not in data:
        offered = nearest(key, data if isinstance(data, dict) else [])
        raise UserError(f"{where}: no {key!r} in its JSON: set data.label_key; {offered}")
    value = data[key]
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UserError(
            f"{where}: {key!r} in its JSON is {value!r}, neither a class number nor a name; set data.label_key "
            "to the key that holds one"
        )
    return str(value).strip()
