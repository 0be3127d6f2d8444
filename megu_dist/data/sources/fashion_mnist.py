"""Fashion-MNIST: 60,000 training and 10,000 test images of clothing, 28×28 gray.

Found without an account: a folder that the user names, Debian's package, a shared folder, else the Hugging Face hub.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megu_dist.config.registry import register
from megu_dist.config.schema import SourceSettings
from megu_dist.data.embedded import EmbeddedSource
from megu_dist.data.files import absolute, is_uri
from megu_dist.data.sources.parquet import ParquetSettings, ParquetSource
from megu_dist.errors import UserError

DEBIAN_FOLDER = "/usr/share/datasets/fashion-mnist"
HUB_ID = "zalando-datasets/fashion_mnist"
CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
SPLIT_PREFIXES = {"train": "train", "test": "t10k"}
IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
REMEDIES = (
    "install it with `apt-get install dataset-fashion-mnist`, or make the Hugging Face hub reachable "
    f"(data set {HUB_ID}), or set data.path= to a folder with the four idx files (.gz or not) or with the Parquet files"
)


@dataclass(kw_only=True)
class FashionMnistSettings(SourceSettings):
    """Nothing of its own; ``path`` may name a folder with the idx or Parquet files."""


@register("data", "fashion_mnist", FashionMnistSettings)
class FashionMnistSource(EmbeddedSource):
    """Fashion-MNIST: 60,000 + 10,000 images of clothing, 28×28 gray; from Debian's package, the hub or a folder."""

    def __init__(self, settings: FashionMnistSettings) -> None:
        folder = _locate(settings.path)
        self._idx: dict[str, str] | None = idx_files(folder)
        if self._idx is None:
            parquet = ParquetSettings(name="fashion_mnist", path=folder, test_path=settings.test_path)
            ParquetSource.__init__(self, parquet)
        else:
            super().__init__(settings, "fashion_mnist", _digest(self._idx))

    def names(self) -> Sequence[str]:
        return CLASSES

    def build(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        assert self._idx is not None
        return {split: _read_split(self._idx, prefix) for split, prefix in SPLIT_PREFIXES.items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state["_idx"] is None:  # served from Parquet as it is: nothing to convert
            self.__dict__.update(state)
        else:
            super().__setstate__(state)


def idx_files(folder: str) -> dict[str, str] | None:
    """Paths of the four idx files by their name without .gz; None unless all are there."""
    found = {}
    for prefix in SPLIT_PREFIXES.values():
        for kind in (IMAGES, LABELS):
            paths = [os.path.join(folder, f"{prefix}-{kind}{suffix}") for suffix in ("", ".gz")]
            if not (present := [path for path in paths if os.path.isfile(path)]):
                return None
            found[f"{prefix}-{kind}"] = present[0]
    return found


def read_idx(path: str, dimensions: int) -> np.ndarray:
    """A file of unsigned bytes in the idx format. Raises :class:`UserError` that names a broken file."""
    try:
        with (gzip.open if path.endswith(".gz") else open)(path, "rb") as handle:
            content = handle.read()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is damaged or truncated: {error}; fetch it again") from error
    header = 4 * (1 + dimensions)
    if len(content) < header or content[:4] != bytes([0, 0, 8, dimensions]):
        raise UserError(f"{path} is not an idx file of unsigned bytes with {dimensions} dimensions; fetch it again")
    shape = tuple(int(size) for size in np.frombuffer(content[4:header], dtype=">u4"))
    if len(content) - header != math.prod(shape):
        raise UserError(
            f"{path} is truncated: {len(content) - header} bytes of data instead of {math.prod(shape)}; fetch it again"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)


def _read_split(files: dict[str, str], prefix: str) -> tuple[np.ndarray, np.ndarray]:
    image_file, label_file = files[f"{prefix}-{IMAGES}"], files[f"{prefix}-{LABELS}"]
    images, labels = read_idx(image_file, 3), read_idx(label_file, 1).astype(np.int64)
    if len(images) != len(labels):
        raise UserError(
            f"{image_file} holds {len(images)} images, but {label_file} {len(labels)} labels; fetch both again"
        )
    if len(labels) and labels.max() >= len(CLASSES):
        raise UserError(
            f"{label_file} holds label {labels.max()}; Fashion-MNIST has labels 0 … {len(CLASSES) - 1}; fetch "
            "it again, or use another data="
        )
    return images, labels


def _locate(path: str | None) -> str:
    """The folder that holds the idx or Parquet files."""
    if path:
        path = absolute(path)
        if is_uri(path) or not os.path.isdir(path) or _is_usable(path):
            return path  # what is wrong with it, if anything, is told where it is read
        raise UserError(
            f"data.path={path} holds neither the four idx files nor Parquet files of Fashion-MNIST; {REMEDIES}"
        )
    shared = os.environ.get("MEGU_DATA_DIR")
    for folder in [DEBIAN_FOLDER] + ([os.path.join(absolute(shared), "fashion-mnist")] if shared else []):
        if _is_usable(folder):
            return folder
    return _download()


def _is_usable(folder: str) -> bool:
    return idx_files(folder) is not None or any(Path(folder).rglob("*.parquet"))


def _download() -> str:
    try:
        from huggingface_hub import snapshot_download

        return str(snapshot_download(HUB_ID, repo_type="dataset", allow_patterns="*.parquet"))
    except Exception as error:  # whatever the network or the hub's client raises: the user's remedies are the same
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"Fashion-MNIST is not on this machine, and the hub failed ({first}): {REMEDIES}") from error


def _digest(files: dict[str, str]) -> str:
    """Hash of the files' content: other data in the same folder is never served from an older conversion."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(name.encode())
        with open(files[name], "rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()[:16]
