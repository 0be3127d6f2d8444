"""A few perturbed forget images, picked evenly from the run's perturbed files without reading all of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megu_dist.errors import UserError

COLUMNS = ["id", "label", "image", "perturbing_label", "noise_pos", "noise_neg"]


@dataclass(frozen=True)
class PerturbedSample:
    """One forget image with its first draw; arrays are (H, W, C) in pixel units."""

    id: str
    label: int
    perturbing_label: int
    image: np.ndarray
    noise_pos: np.ndarray
    noise_neg: np.ndarray
    epsilon: float  # bound of the noise

    def perturbed(self, alpha: float, beta: float) -> np.ndarray:
        """clip(x + αN⁺ + βN⁻)."""
        return np.clip(self.image + alpha * self.noise_pos + beta * self.noise_neg, 0.0, 1.0)


def load_samples(files: Sequence[Path], count: int) -> list[PerturbedSample]:
    """Up to ``count`` samples, evenly spaced over all rows of ``files``."""
    import pyarrow.parquet as pq
    from pyarrow import ArrowException

    try:
        sizes = [pq.read_metadata(path).num_rows for path in files]
        wanted = _spaced(sum(sizes), count)
        samples: list[PerturbedSample] = []
        first = 0
        for path, size in zip(files, sizes, strict=True):
            inside = [position - first for position in wanted if first <= position < first + size]
            if inside:
                samples += _read_rows(pq.ParquetFile(path), inside)
            first += size
    except (ArrowException, OSError, KeyError, ValueError) as error:
        folder = files[0].parent
        raise UserError(f"{folder} does not hold readable perturbed images: run `megu unlearn` again") from error
    return samples


def _spaced(total: int, count: int) -> list[int]:
    count = min(count, total)
    return [(2 * index + 1) * total // (2 * count) for index in range(count)]


def _read_rows(file: Any, rows: list[int]) -> list[PerturbedSample]:
    """The given rows of one Parquet file, reading only the row groups that hold them."""
    meta = json.loads(file.schema_arrow.metadata[b"megu"])
    samples: list[PerturbedSample] = []
    first = 0
    for group in range(file.num_row_groups):
        size = file.metadata.row_group(group).num_rows
        inside = [row - first for row in rows if first <= row < first + size]
        if inside:
            have = [name for name in COLUMNS if name in file.schema_arrow.names]
            table = file.read_row_group(group, columns=have).take(inside)
            samples += [_sample(record, meta) for record in table.to_pylist()]
        first += size
    return samples


def _sample(record: dict[str, Any], meta: dict[str, Any]) -> PerturbedSample:
    shape, scale = tuple(int(size) for size in meta["shape"]), float(meta["scale"])

    def pixels(data: bytes | None, dtype: type[np.generic], unit: float) -> np.ndarray:
        if not data:  # a run without this kind of noise
            return np.zeros((shape[1], shape[2], shape[0]))
        return np.frombuffer(data, dtype=dtype).reshape(shape).transpose(1, 2, 0) * unit

    labels, draws = record["perturbing_label"] or [record["label"]], record.get("noise_pos") or [None]
    return PerturbedSample(
        id=str(record["id"]),
        label=int(record["label"]),
        perturbing_label=int(labels[0]),
        image=pixels(record["image"], np.uint8, 1 / 255),
        noise_pos=pixels(draws[0], np.int8, scale),
        noise_neg=pixels(record.get("noise_neg"), np.int8, scale),
        epsilon=float(meta.get("epsilon") or scale * 127),
    )
