"""The perturbed forget set on disk: ``perturbed/*.parquet``.

One row per forget image: ``row``, ``id``, ``label``, ``image`` (uint8, C·H·W bytes), ``perturbing_label`` (one per
draw), and where it was made ``noise_pos`` (int8, C·H·W bytes per draw), ``noise_neg`` (int8). Noise in pixel units is
``value · scale``.
Shape, scale and ε are JSON in the schema metadata under ``megu``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from megu_dist.errors import UserError

META = b"megu"


def make_table(arrays: dict[str, Any], shape: tuple[int, int, int], epsilon: float) -> pa.Table:
    """``noise_pos`` (N, draws, C, H, W), ``noise_neg`` (N, C, H, W) int8 or left out, ``perturbing_label`` (N, draws),
    the other columns (N, …)."""
    size = int(np.prod(shape))
    count, draws = arrays["perturbing_label"].shape

    def fixed(values: np.ndarray) -> pa.Array:
        flat = np.ascontiguousarray(values).reshape(-1, size)
        return pa.FixedSizeBinaryArray.from_buffers(pa.binary(size), len(flat), [None, pa.py_buffer(flat.tobytes())])

    def per_draw(values: pa.Array) -> pa.Array:
        return pa.ListArray.from_arrays(pa.array(np.arange(count + 1, dtype=np.int32) * draws), values)

    meta = {"shape": list(shape), "scale": epsilon / 127, "epsilon": epsilon, "draws": draws}
    columns = {
        "row": pa.array(arrays["row"], pa.int64()),
        "id": pa.array(list(arrays["id"]), pa.string()),
        "label": pa.array(arrays["label"], pa.int64()),
        "image": fixed(arrays["image"]),
        "perturbing_label": per_draw(pa.array(arrays["perturbing_label"].ravel(), pa.int64())),
    }
    if "noise_pos" in arrays:
        columns["noise_pos"] = per_draw(fixed(arrays["noise_pos"]))
    if "noise_neg" in arrays:
        columns["noise_neg"] = fixed(arrays["noise_neg"])
    return pa.table(columns).replace_schema_metadata({META: json.dumps(meta).encode()})


class PerturbedStore:
    """Reads rows by position; positions follow the source's row numbers, whatever file a task wrote them to."""

    def __init__(self, folder: Path) -> None:
        self.files = sorted(folder.glob("*.parquet"))
        if not self.files:
            raise UserError(f"{folder} holds no perturbed images; run `megu unlearn` again")
        schema = pq.read_schema(self.files[0])
        meta = json.loads(schema.metadata[META])
        self.noise = tuple(name for name in ("noise_pos", "noise_neg") if name in schema.names)
        self.shape: tuple[int, int, int] = tuple(meta["shape"])
        self.scale: float = meta["scale"]
        self.draws: int = meta["draws"]
        rows, where = [], []
        for number, file in enumerate(self.files):
            parquet = pq.ParquetFile(file)
            for group in range(parquet.num_row_groups):
                found = parquet.read_row_group(group, columns=["row"])["row"].to_numpy()
                rows.append(found)
                where.append(
                    np.stack([np.full(len(found), number), np.full(len(found), group), np.arange(len(found))], 1)
                )
        order = np.argsort(np.concatenate(rows), kind="stable")
        self.rows = np.concatenate(rows)[order]
        self._where = np.concatenate(where)[order]

    def __len__(self) -> int:
        return len(self.rows)

    def gather(self, positions: np.ndarray, draw: int) -> dict[str, np.ndarray]:
        """Arrays of the rows at ``positions``, in that order, with draw ``draw mod draws``."""
        where = self._where[positions]
        out: dict[str, np.ndarray] = {"row": self.rows[positions]}
        count = len(positions)
        out["image"] = np.empty((count, *self.shape), np.uint8)
        for name in self.noise:
            out[name] = np.empty((count, *self.shape), np.int8)
        for name in ("label", "perturbing_label"):
            out[name] = np.empty(count, np.int64)
        for file, group in np.unique(where[:, :2], axis=0):
            chosen = np.flatnonzero((where[:, 0] == file) & (where[:, 1] == group))
            table = pq.ParquetFile(self.files[file]).read_row_group(group).combine_chunks()
            self._fill(out, chosen, where[chosen, 2], table, draw % self.draws)
        return out

    def _fill(self, out: dict[str, np.ndarray], to: np.ndarray, take: np.ndarray, table: pa.Table, draw: int) -> None:
        def pixels(column: pa.Array, kind: type) -> np.ndarray:
            size = int(np.prod(self.shape))
            data: np.ndarray = np.frombuffer(column.buffers()[1], kind)
            return data[column.offset * size : (column.offset + len(column)) * size].reshape(-1, *self.shape)

        def one(name: str) -> pa.Array:
            return table[name].chunk(0)

        out["label"][to] = one("label").to_numpy()[take]
        out["perturbing_label"][to] = one("perturbing_label").flatten().to_numpy().reshape(-1, self.draws)[take, draw]
        out["image"][to] = pixels(one("image"), np.uint8)[take]
        if "noise_neg" in out:
            out["noise_neg"][to] = pixels(one("noise_neg"), np.int8)[take]
        if "noise_pos" in out:
            noise = pixels(one("noise_pos").flatten(), np.int8).reshape(-1, self.draws, *self.shape)
            out["noise_pos"][to] = noise[take, draw]
