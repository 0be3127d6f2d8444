"""Writes data sets that come in other formats to Parquet once, so that one code path serves all data."""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from megu_dist.config.schema import SourceSettings
from megu_dist.data.sources.parquet import ParquetSettings, ParquetSource
from megu_dist.errors import UserError

FILES_PER_SPLIT = 4
ROW_GROUP_ROWS = 1000


class EmbeddedSource(ParquetSource):
    """A data set converted to ``<cache_dir>/<name>-v1/<content>``; a node without that folder converts it again."""

    def __init__(self, settings: SourceSettings, name: str, content: str) -> None:
        self._folder = Path(settings.cache_dir).expanduser().absolute() / f"{name}-v1" / content
        self._ensure()
        super().__init__(ParquetSettings(name=name, path=str(self._folder), test_path=settings.test_path))
        if not settings.test_path:
            # The same on every machine, whenever the conversion ran.
            self._fingerprint = f"{name}-v1-{content}"

    def build(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Images (n, h, w) uint8 and labels of every split."""
        raise NotImplementedError

    def names(self) -> Sequence[str]:
        """Class names by label."""
        raise NotImplementedError

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._ensure()

    def _ensure(self) -> None:
        """Convert unless done. The finished folder appears at once, so that two processes may do this together."""
        if self._folder.is_dir():
            return
        try:
            self._folder.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".{self._folder.name}-", dir=self._folder.parent))
        except OSError as error:
            raise UserError(f"cannot write to data.cache_dir: {error}; set data.cache_dir to another folder") from error
        try:
            for split, (images, labels) in self.build().items():
                write_split(temporary, split, images, labels, self.names())
            temporary.chmod(0o755)  # a cache may be shared; mkdtemp keeps others out
            try:
                os.rename(temporary, self._folder)
            except OSError:
                if not self._folder.is_dir():  # else another process was first
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_split(folder: Path, split: str, images: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> None:
    """Write gray images as PNG in the Hugging Face layout, as a few files of many row groups."""
    features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image_type), ("label", pa.int64())], metadata=metadata)
    bounds = np.linspace(0, len(labels), FILES_PER_SPLIT + 1).astype(int)
    for number, (first, end) in enumerate(itertools.pairwise(bounds)):
        path = folder / f"{split}-{number:05d}-of-{FILES_PER_SPLIT:05d}.parquet"
        # PNG does not shrink further.
        with pq.ParquetWriter(path, schema, compression="none") as writer:
            for start in range(first, end, ROW_GROUP_ROWS):
                stop = min(start + ROW_GROUP_ROWS, end)
                encoded = [{"bytes": png(image), "path": None} for image in images[start:stop]]
                writer.write_table(pa.table({"image": encoded, "label": labels[start:stop]}, schema=schema))


def png(image: np.ndarray) -> bytes:
    """A gray uint8 image as PNG; light compression, since it is read more often than kept."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
