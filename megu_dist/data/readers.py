"""What Ray Data tasks run: row numbers in, decoded uint8 images (and noise) out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from megu_dist.data.bad_rows import BadRow
from megu_dist.data.base import Source
from megu_dist.data.perturbed import PerturbedStore
from megu_dist.data.plan import hash_uniform
from megu_dist.errors import UserError
from megu_dist.models.preprocess import Preprocess

Arrays = dict[str, np.ndarray]
CROP_PAD = 4  # pixels at 32 × 32; scaled with the image


@dataclass(frozen=True)
class Augment:
    """Random flip and crop, decided by (seed, epoch, row) alone."""

    kind: str  # none | flip | crop_flip
    seed: int
    epoch: int

    def __call__(self, rows: np.ndarray, images: list[np.ndarray]) -> list[np.ndarray]:
        """Moves each row's images (arrays of shape (N, …, H, W)) in the same way; padding is zero."""
        if self.kind == "none":
            return images
        flip = hash_uniform(self.seed, self.epoch, 11, rows) < 0.5
        images = [_flipped(x, flip) for x in images]
        if self.kind == "flip":
            return images
        return [self._crop(rows, x) for x in images]

    def _crop(self, rows: np.ndarray, x: np.ndarray) -> np.ndarray:
        height, width = x.shape[-2:]
        pad = max(1, round(CROP_PAD * height / 32))
        top = (hash_uniform(self.seed, self.epoch, 12, rows) * (2 * pad + 1)).astype(int)
        left = (hash_uniform(self.seed, self.epoch, 13, rows) * (2 * pad + 1)).astype(int)
        padded = np.pad(x, [(0, 0)] * (x.ndim - 2) + [(pad, pad), (pad, pad)])
        return np.stack(
            [p[..., t : t + height, le : le + width] for p, t, le in zip(padded, top, left, strict=True)]
        ).reshape(x.shape)


def _flipped(x: np.ndarray, flip: np.ndarray) -> np.ndarray:
    out = x.copy()
    out[flip] = x[flip][..., ::-1]
    return out


@dataclass(frozen=True)
class ImageReader:
    """Reads and decodes rows of one split of a source."""

    source: Source
    split: str
    preprocess: Preprocess
    augment: Augment | None = None
    keep_id: bool = False
    skip_bad: bool = False  # as far as the run allows it, images that cannot be decoded are marked and not an error

    def __call__(self, batch: Arrays) -> Arrays:
        """{row: (N,)} → {row, label: (N,), image: uint8 (N, C, H, W)}; where asked, id and (if there are any) fine labels.

        Where the run allows unreadable images, ``bad`` (N,) tells which are; they are black, and every row has its place.
        """
        rows = np.asarray(batch["row"])
        kept = self.source.decoded
        found = None if kept is None else kept.read(self.split, rows, self.preprocess)
        if found is None:
            table = self.source.gather(self.split, rows)
            images, bad = decode(table, self.preprocess)
            if bad:
                self._report(table, bad)
        else:
            (table, images), bad = found, {}
        if self.augment is not None:
            (images,) = self.augment(rows, [images])
        out = {"row": rows, "label": table["label"].to_numpy(), "image": images}
        if self.keep_id:
            out["id"] = np.array(table["id"].to_pylist(), dtype=object)
            if "fine" in table.column_names:
                out["fine"] = table["fine"].to_numpy()
        if self.skip_bad and self.source.bad_rows is not None and self.source.bad_rows.fraction:
            out["bad"] = np.isin(np.arange(len(rows)), list(bad))
        return out

    def _report(self, table: pa.Table, bad: dict[int, str]) -> None:
        """Raises unless the run allows these images to be unreadable, and this reader to pass them on."""
        known = self.source.bad_rows
        if known is not None:
            rows, names = table["row"].to_pylist(), table["id"].to_pylist()
            reasons = {i: bad[i].removeprefix(f"cannot read image {names[i]!r}: ") for i in sorted(bad)}
            found = [BadRow(rows[i], names[i], reason) for i, reason in reasons.items()]
            known.report(self.split, self.source.num_rows(self.split), found)
        if known is None or not self.skip_bad:
            raise UserError(f"{bad[min(bad)]}; mend it, or set data.max_bad_fraction")


def without_bad(arrays: Arrays) -> Arrays:
    """The rows that were read, without the column that says so."""
    bad = arrays.get("bad")
    if bad is None:
        return arrays
    rest = {name: values for name, values in arrays.items() if name != "bad"}
    return {name: values[~bad] for name, values in rest.items()} if bad.any() else rest


def decode(table: pa.Table, preprocess: Preprocess) -> tuple[np.ndarray, dict[int, str]]:
    """Column ``image`` of a gathered table → uint8 (N, C, H, W), and why the images at some places are unreadable."""
    data, names = table["image"].to_pylist(), table["id"].to_pylist()
    out = np.zeros((len(data), *preprocess.shape), np.uint8)
    bad: dict[int, str] = {}
    for i in range(len(data)):
        try:
            out[i] = preprocess.decode(data[i], names[i])
        except UserError as error:
            bad[i] = str(error)
    return out, bad


@dataclass(frozen=True)
class PerturbedReader:
    """Reads perturbed forget rows: positions in the store, draw ``epoch mod draws``."""

    store: PerturbedStore
    draw: int
    augment: Augment | None = None

    def __call__(self, batch: Arrays) -> Arrays:
        """{row: (N,) positions} → image uint8, noise int8 where made (N, C, H, W), label, perturbing_label (N,)."""
        out = self.store.gather(np.asarray(batch["row"]), self.draw)
        if self.augment is not None:
            names = ["image", *self.store.noise]
            out.update(zip(names, self.augment(out["row"], [out[name] for name in names]), strict=True))
        return out
