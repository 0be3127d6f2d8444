"""Images decoded once into memory-mapped files that the processes of a machine share: for many runs over small images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from megu_dist.data.base import Source
from megu_dist.models.preprocess import Preprocess


def decoding(preprocess: Preprocess) -> str:
    """Hash of what decides decoded pixels: everything but the normalisation."""
    parts = {key: value for key, value in asdict(preprocess).items() if key not in ("mean", "std")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


class DecodedImages:
    """``folder/<split>.npy``, uint8 (N, C, H, W) by row, and ``folder/<split>.parquet`` with ids and labels."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key
        self._open: dict[str, tuple[pa.Table, np.ndarray]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "key": self.key, "_open": {}}

    def read(self, split: str, rows: np.ndarray, preprocess: Preprocess) -> tuple[pa.Table, np.ndarray] | None:
        """The rows' table and images; None where they were not decoded, or not in this way."""
        if decoding(preprocess) != self.key or not (self.folder / f"{split}.npy").is_file():
            return None
        if split not in self._open:
            images = np.load(self.folder / f"{split}.npy", mmap_mode="r")
            self._open[split] = pq.read_table(self.folder / f"{split}.parquet"), images
        table, images = self._open[split]
        return table.take(pa.array(rows)), images[rows]


def size(source: Source, preprocess: Preprocess) -> int:
    """Bytes of all decoded images."""
    return preprocess.image_bytes * sum(source.num_rows(split) for split in source.splits)


def decode_all(source: Source, preprocess: Preprocess, root: Path, progress: Callable[[int], None]) -> DecodedImages:
    """Decodes every split into a folder below ``root`` unless it is there."""
    from megu_dist.data import stream
    from megu_dist.data.readers import ImageReader

    key = decoding(preprocess)
    folder = root / hashlib.sha256(f"{source.fingerprint()} {key}".encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    done = 0
    for split in source.splits:
        target, total = folder / f"{split}.npy", source.num_rows(split)
        if target.is_file():
            done += total
            continue
        temporary = folder / f".{split}.npy"
        images = np.lib.format.open_memmap(temporary, "w+", np.uint8, (total, *preprocess.shape))
        columns: dict[str, list[Any]] = {}
        reader = ImageReader(source, split, preprocess, keep_id=True)
        for block in stream.blocks(np.arange(total), reader, stream.task_rows(preprocess.image_bytes)):
            images[block["row"]] = block["image"]
            for name in block.keys() - {"image"}:
                columns.setdefault(name, []).extend(block[name].tolist())
            done += len(block["row"])
            progress(done)
        images.flush()
        pq.write_table(pa.table(columns), folder / f"{split}.parquet")
        temporary.rename(target)  # last: the pair is whole when this file is there
    return DecodedImages(folder, key)
