"""The evaluate stage: every model's predictions on the four parts, as one Ray Data job with model actors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from megu_dist.config.schema import EvaluateSettings
from megu_dist.data.base import Source
from megu_dist.data.readers import Arrays, ImageReader
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
                out = ImageReader(self.source, split, self.preprocess, keep_id=True)({"row": rows[mine - start]})
                part = np.full(len(mine), PARTS.index(name))
                if name == "retain_test":
                    part[np.isin(out[self.by], self.forgotten)] = PARTS.index("forget_test")
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
        """Adds probs (N, C) float32 and loss (N,) of each model; drops the images."""
        out = {key: block[key] for key in ("row", "id", "label", "part")}
        for name in self.models:
            size = self.batch_size
            starts = range(0, len(block["row"]), size)
            parts = [self._predict(name, block["image"][s : s + size], block["label"][s : s + size]) for s in starts]
            out[f"{name}/probs"] = np.concatenate([p for p, _ in parts])
            out[f"{name}/loss"] = np.concatenate([loss for _, loss in parts])
        return out

    def probabilities(self, name: str, images: np.ndarray) -> np.ndarray:
        """(N, C) float32 for decoded images (N, C, H, W)."""
        starts = range(0, len(images), self.batch_size)
        labels = np.zeros(self.batch_size, np.int64)
        parts = [images[s : s + self.batch_size] for s in starts]
        return np.concatenate([self._predict(name, part, labels[: len(part)])[0] for part in parts])

    def _predict(self, name: str, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        import torch

        model, preprocess = self.models[name]
        with torch.inference_mode():
            pixels = torch.from_numpy(np.array(images)).to(self.device).float() / 255
            inputs = preprocess.normalise(pixels).contiguous(memory_format=torch.channels_last)
            logs = model(pixel_values=inputs).logits.float().log_softmax(1)
            loss = -logs.gather(1, torch.from_numpy(np.array(labels)).to(self.device)[:, None])[:, 0]
            return logs.exp().cpu().numpy(), loss.cpu().numpy()


def predict(
    reader: PartReader,
    folders: dict[str, str],
    settings: EvaluateSettings,
    actors: int,
    out: Path,
    progress: Callable[[int], None],
) -> dict[str, Parts]:
    """Writes ``out/<model>.parquet`` and returns the predictions by model and part."""
    from megu_dist.data import stream

    data = stream.dataset(
        np.arange(reader.count), reader, stream.task_rows(int(np.prod(reader.preprocess.shape)))
    ).map_batches(
        Predictor,
        batch_size=None,
        batch_format="numpy",
        zero_copy_batch=True,
        compute=stream.actor_pool(actors),
        num_cpus=1,
        num_gpus=settings.num_gpus,
        fn_constructor_kwargs={"folders": folders, "settings": settings, "actors": actors},
    )
    blocks, done = [], 0
    for block in data.iter_batches(batch_size=None, batch_format="numpy"):
        blocks.append({key: np.array(value) for key, value in block.items()})
        done += len(block["row"])
        progress(done)
    order = np.argsort(np.concatenate([b["row"] for b in blocks]), kind="stable")
    merged = {key: np.concatenate([b[key] for b in blocks])[order] for key in blocks[0]}
    out.mkdir(parents=True, exist_ok=True)
    return {name: _write(name, merged, out) for name in folders}


def _write(name: str, merged: Arrays, out: Path) -> Parts:
    probs, loss = merged[f"{name}/probs"], merged[f"{name}/loss"]
    entropy = -(probs * np.log(np.maximum(probs, 1e-12))).sum(1)
    prediction = probs.argmax(1)
    table = pa.table(
        {
            "id": pa.array(merged["id"].tolist(), pa.string()),
            "part": pa.array([PARTS[p] for p in merged["part"]], pa.string()),
            "label": merged["label"],
            "prediction": prediction,
            "loss": loss.astype(np.float32),
            "entropy": entropy.astype(np.float32),
            "probs": pa.FixedSizeListArray.from_arrays(pa.array(probs.ravel(), pa.float32()), probs.shape[1]),
        }
    )
    pq.write_table(table, out / f"{name}.parquet", compression="zstd")
    parts = {}
    for number, part in enumerate(PARTS):
        m = merged["part"] == number
        if m.any():
            parts[part] = Predictions(merged["label"][m], prediction[m], loss[m], entropy[m], probs[m])
    return parts
