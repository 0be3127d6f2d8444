"""The evaluate stage: every model's predictions on the four parts, as one Ray Data job with model actors."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from megu_dist.config.schema import EvaluateSettings
from megu_dist.data.base import Source
from megu_dist.data.readers import Arrays, ImageReader, without_bad
from megu_dist.metrics.base import PARTS, Parts, Predictions
from megu_dist.models.preprocess import Preprocess


@dataclass(frozen=True)
class PartReader:
    """Decodes rows numbered over several parts: part k holds numbers starts[k] … starts[k+1]-1."""

    source: Source
    preprocess: Preprocess
    parts: tuple[tuple[str, str, np.ndarray], ...]  # name, split, rows
    forgotten: tuple[int, ...]  # classes whose test images are "forgotten"
    by: str = "label"  # which label `forgotten` speaks of: label | fine
    already: tuple[int, ...] = ()  # classes that were forgotten before: their test images are a part of their own

    @property
    def count(self) -> int:
        """Rows over all parts."""
        return sum(len(rows) for _, _, rows in self.parts)

    def __call__(self, batch: Arrays) -> Arrays:
        """{row: numbers} → {row, id, label, part, image}."""
        numbers = np.asarray(batch["row"])
        pieces, start = [], 0
        for name, split, rows in self.parts:
            mine = numbers[(numbers >= start) & (numbers < start + len(rows))]
            if len(mine):
                out = ImageReader(self.source, split, self.preprocess, keep_id=True, skip_bad=True)(
                    {"row": rows[mine - start]}
                )
                part = np.full(len(mine), PARTS.index(name))
                if name == "retain_test":
                    part[np.isin(out[self.by], self.forgotten)] = PARTS.index("forget_test")
                    part[np.isin(out["label"], self.already)] = PARTS.index("already_test")
                pieces.append({**out, "row": mine, "part": part})
            start += len(rows)
        return {key: np.concatenate([piece[key] for piece in pieces]) for key in pieces[0]}


class Predictor:
    """Holds all models to be compared, so that each image is decoded once; called by Ray Data with decoded blocks."""

    def __init__(self, folders: dict[str, str], settings: EvaluateSettings, actors: int) -> None:
        import torch

        import megu_dist  # noqa: F401  (registers the CIFAR ResNet)
        from megu_dist.engine.base import set_threads
        from megu_dist.models.checkpoint import open_checkpoint

        set_threads(0, actors)
        self.device = torch.device("cuda" if settings.num_gpus > 0 and torch.cuda.is_available() else "cpu")
        self.batch_size = settings.batch_size
        self.models = {}
        for name, folder in folders.items():
            checkpoint = open_checkpoint(folder)
            model = checkpoint.load().to(self.device, memory_format=torch.channels_last)
            self.models[name] = (model, checkpoint.preprocess)

    def __call__(self, block: Arrays) -> Arrays:
        """Adds probs (N, C) float32, prediction, loss and entropy (N,) of each model; drops the images."""
        out: Arrays = {key: block[key] for key in ("row", "id", "label", "part", "bad") if key in block}
        for name in self.models:
            size = self.batch_size
            starts = range(0, len(block["row"]), size)
            parts = [self._predict(name, block["image"][s : s + size], block["label"][s : s + size]) for s in starts]
            out |= {f"{name}/{key}": np.concatenate([part[key] for part in parts]) for key in parts[0]}
        return out

    def probabilities(self, name: str, images: np.ndarray) -> np.ndarray:
        """(N, C) float32 for decoded images (N, C, H, W)."""
        starts = range(0, len(images), self.batch_size)
        labels = np.zeros(self.batch_size, np.int64)
        parts = [images[s : s + self.batch_size] for s in starts]
        return np.concatenate([self._predict(name, part, labels[: len(part)])["probs"] for part in parts])

    def _predict(self, name: str, images: np.ndarray, labels: np.ndarray) -> Arrays:
        import torch

        model, preprocess = self.models[name]
        with torch.inference_mode():
            pixels = torch.from_numpy(np.array(images)).to(self.device).float() / 255
            inputs = preprocess.normalise(pixels).contiguous(memory_format=torch.channels_last)
            logs = model(pixel_values=inputs).logits.float().log_softmax(1)
            loss = -logs.gather(1, torch.from_numpy(np.array(labels)).to(self.device)[:, None])[:, 0]
            probs = logs.exp()
            entropy, prediction = -(probs * logs).sum(1), probs.argmax(1)
            found = {"probs": probs, "prediction": prediction, "loss": loss, "entropy": entropy}
            return {key: value.cpu().numpy() for key, value in found.items()}


def predict(
    reader: PartReader,
    folders: dict[str, str],
    settings: EvaluateSettings,
    actors: int,
    out: Path,
    progress: Callable[[int], None],
    kept: Kept | None = None,
) -> dict[str, Parts]:
    """Writes ``out/<model>.parquet`` and returns the predictions by model and part; those ``kept`` are not made again."""
    from megu_dist.data import stream

    names = list(folders)
    known = {} if kept is None else kept.find(names)
    folders = {name: folder for name, folder in folders.items() if name not in known}
    rows, chunk = np.arange(reader.count), stream.task_rows(reader.preprocess.image_bytes)
    arguments = {"folders": folders, "settings": settings, "actors": actors}
    out.mkdir(parents=True, exist_ok=True)
    files, done = {name: _File(out / f"{name}.parquet") for name in folders}, 0
    for block in stream.blocks(rows, reader, chunk, Predictor, arguments, actors, settings.num_gpus):
        order = np.argsort(block["row"], kind="stable")  # a block may hold rows of several parts, part by part
        sound = without_bad({key: np.asarray(value)[order] for key, value in block.items()})
        for name, file in files.items():
            file.add(_table(name, sound))
        done += len(block["row"])
        progress(done)
    for name, file in files.items():
        file.close()
        if kept is not None:
            kept.keep(name, file.path)
    for name, before in known.items():
        shutil.copyfile(before, out / f"{name}.parquet")
    return {name: read(out / f"{name}.parquet") for name in names}


@dataclass(frozen=True)
class Kept:
    """Predictions on the same images of models that many runs compare with: ``folder/<images>/<model>.parquet``."""

    folder: Path | None  # none: nothing is kept
    fingerprints: dict[str, str]  # of models by name
    images: str  # hash of what says which images

    def path(self, name: str) -> Path | None:
        """Where a model's predictions are, or would be; None for the unlearned one, which is no other run's."""
        if self.folder is None or name == "unlearned":
            return None
        return self.folder / self.images[:16] / f"{self.fingerprints[name][:32]}.parquet"

    def find(self, names: Iterable[str]) -> dict[str, Path]:
        """Those that are there."""
        return {name: path for name in names if (path := self.path(name)) is not None and path.is_file()}

    def keep(self, name: str, file: Path) -> None:
        """Copies a model's predictions there, atomically."""
        path = self.path(name)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            shutil.copyfile(file, temporary)
            temporary.replace(path)


def read(file: Path) -> Parts:
    """The predictions in ``predictions/<model>.parquet``; probabilities stay on disk, in a nameless file beside it."""
    table = pq.read_table(file, columns=["part", "label", "prediction", "loss", "entropy"])
    part = table["part"].to_numpy(zero_copy_only=False)
    columns = {name: table[name].to_numpy() for name in ("label", "prediction", "loss", "entropy")}
    where = {name: np.flatnonzero(part == name) for name in PARTS}
    order = np.concatenate(list(where.values()))
    probs = _on_disk(file, order)
    parts, start = {}, 0
    for name, rows in where.items():
        if len(rows):
            mine = {column: values[rows] for column, values in columns.items()}
            parts[name] = Predictions(**mine, probs=probs[start : start + len(rows)])
        start += len(rows)
    return parts


def _on_disk(file: Path, order: np.ndarray) -> np.ndarray:
    """Column ``probs``, rows in ``order``, (N, C) float32: mapped into memory, and gone with the last view of it."""
    parquet = pq.ParquetFile(file)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    classes = parquet.schema_arrow.field("probs").type.list_size
    with tempfile.TemporaryFile(dir=file.parent) as target:
        target.truncate(4 * len(order) * classes)
        if hasattr(os, "posix_fallocate"):  # a full disk is an error here, and would kill the process later
            os.posix_fallocate(target.fileno(), 0, 4 * len(order) * classes)
        probs = np.memmap(target, np.float32, "r+", shape=(len(order), classes))
    start = 0
    for group in range(parquet.num_row_groups):
        block = parquet.read_row_group(group, columns=["probs"])["probs"].combine_chunks()
        probs[place[start : start + len(block)]] = block.flatten().to_numpy().reshape(len(block), classes)
        start += len(block)
    return probs


class _File:
    """A model's Parquet file, which takes one block at a time: all probabilities together may not fit into memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer: pq.ParquetWriter | None = None

    def add(self, table: pa.Table) -> None:
        if self._writer is None:
            words = ["id", "part"]  # a dictionary of probabilities takes time and saves nothing
            self._writer = pq.ParquetWriter(self.path, table.schema, compression="zstd", use_dictionary=words)
        self._writer.write_table(table)

    def close(self) -> None:
        assert self._writer is not None, "no image was scored"
        self._writer.close()


def _table(name: str, block: Arrays) -> pa.Table:
    """What is kept of one model's predictions of a block."""
    probs = block[f"{name}/probs"]
    return pa.table(
        {
            "id": pa.array(block["id"].tolist(), pa.string()),
            "part": pa.array([PARTS[p] for p in block["part"]], pa.string()),
            "label": block["label"],
            "prediction": block[f"{name}/prediction"],
            "loss": block[f"{name}/loss"],
            "entropy": block[f"{name}/entropy"],
            "probs": pa.FixedSizeListArray.from_arrays(pa.array(probs.ravel(), pa.float32()), probs.shape[1]),
        }
    )
