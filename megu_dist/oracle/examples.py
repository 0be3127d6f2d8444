"""Example images of concepts, drawn from the training data by seeded hash and shrunk for the oracle."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from PIL import Image, UnidentifiedImageError

from megu_dist.data import stream
from megu_dist.data.base import Source
from megu_dist.data.plan import hash_uniform
from megu_dist.data.split import scan
from megu_dist.errors import UserError

LOSSLESS_SIDE = 64  # pixels; smaller pictures stay exact


def draw(
    source: Source, labels: list[int], count: int, seed: int, side: int, without: np.ndarray
) -> dict[int, tuple[bytes, ...]]:
    """``count`` encoded images per label (fewer where a class has fewer), at most ``side`` pixels wide and high.

    ``without``: training rows never shown (those of a deletion request by ids). The same rows for any cluster.
    """
    keep = _Lowest(tuple(labels), count, seed, frozenset(without.tolist()))
    table, _ = scan(source, "train", keep, columns=("row", "label"))
    rows, found = table["row"].to_numpy(), table["label"].to_numpy()
    chosen = np.sort(rows[_lowest(rows, found, count, seed)])
    out: dict[int, list[bytes]] = {label: [] for label in labels}
    reader = _Shrink(source, side)
    readers = 0 if stream.few(len(chosen), 3 * side * side, source.encoded_bytes("train")) else 1
    for batch in stream.blocks(chosen, reader, 64, actors=readers, batch_format="pyarrow"):
        for record in batch.to_pylist():
            out[record["label"]].append(record["image"])
    return {label: tuple(images) for label, images in out.items()}


def _lowest(rows: np.ndarray, labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Mask of the ``count`` rows of each label with the smallest hash."""
    mask = np.zeros(len(rows), bool)
    order = np.lexsort((hash_uniform(seed, 31, rows), labels))
    ordered = labels[order]
    starts = np.searchsorted(ordered, ordered, side="left")
    mask[order[np.arange(len(rows)) - starts < count]] = True
    return mask


@dataclass(frozen=True)
class _Lowest:
    labels: tuple[int, ...]
    count: int
    seed: int
    without: frozenset[int]

    def __call__(self, index: pa.Table) -> np.ndarray:
        rows, labels = index["row"].to_numpy(), index["label"].to_numpy()
        mask = np.isin(labels, self.labels) & ~np.fromiter((int(r) in self.without for r in rows), bool, len(rows))
        mask[mask] = _lowest(rows[mask], labels[mask], self.count, self.seed)
        return mask


@dataclass(frozen=True)
class _Shrink:
    source: Source
    side: int

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        table = self.source.gather("train", np.asarray(batch["row"]))
        images = [shrink(data, name, self.side) for data, name in
                  zip(table["image"].to_pylist(), table["id"].to_pylist(), strict=True)]  # fmt: skip
        return pa.table({"label": table["label"], "image": pa.array(images, pa.binary())})


def shrink(data: bytes, name: str, side: int) -> bytes:
    """Encoded image → RGB, no larger than ``side``, re-encoded. Raises :class:`UserError` that names it."""
    try:
        image: Image.Image = Image.open(io.BytesIO(data))
        image.draft("RGB", (side, side))
        image = image.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(
            f"cannot read image {name!r}: {error or type(error).__name__}; mend it, or take it out of the data"
        ) from None
    image.thumbnail((side, side))
    sink = io.BytesIO()
    if max(image.size) <= LOSSLESS_SIDE:
        image.save(sink, "PNG")
    else:
        image.save(sink, "JPEG", quality=90)
    return sink.getvalue()
