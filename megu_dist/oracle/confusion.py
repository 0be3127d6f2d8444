"""Where a classifier sends the images of each class: mean predicted probabilities, as a Ray Data job with model actors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from megu_dist.config.schema import EvaluateSettings
from megu_dist.data import stream
from megu_dist.data.base import Source
from megu_dist.data.readers import Arrays, ImageReader
from megu_dist.models.checkpoint import Checkpoint


def write_confusion(
    source: Source,
    split: str,
    rows: np.ndarray,
    checkpoint: Checkpoint,
    settings: EvaluateSettings,
    actors: int,
    out: Path,
    progress: Callable[[int], None],
    class_names: list[str] | None = None,
) -> None:
    """Writes a table with a row per class that has images: label, name, count, probs (C float32, mean over them).

    ``class_names`` are the classifier's where they are not the source's (rows are fine classes then).
    """
    columns_of = class_names or source.class_names
    reader = ImageReader(source, split, checkpoint.preprocess)
    chunk = stream.task_rows(checkpoint.preprocess.image_bytes)
    arguments = {"folder": str(checkpoint.folder), "settings": settings, "actors": actors}
    rows_of, classes, done = len(source.class_names), len(columns_of), 0
    total, count = np.zeros((rows_of, classes)), np.zeros(rows_of, np.int64)
    for block in stream.blocks(rows, reader, chunk, _Summer, arguments, actors, settings.num_gpus):
        total[block["label"]] += block["probs"]
        count[block["label"]] += block["count"]
        done += int(block["count"].sum())
        progress(done)
    seen = np.flatnonzero(count)
    mean = (total[seen] / count[seen, None]).astype(np.float32)
    columns = {
        "label": pa.array(seen),
        "name": pa.array([source.class_names[c] for c in seen]),
        "count": pa.array(count[seen]),
        "probs": pa.FixedSizeListArray.from_arrays(pa.array(mean.ravel()), classes),
    }
    pq.write_table(pa.table(columns).replace_schema_metadata({"classes": "\n".join(columns_of)}), out)


def read_confusion(path: Path) -> tuple[list[str], dict[str, np.ndarray]]:
    """Class names in label order, and the (C,) mean probabilities of each class that has images."""
    table = pq.read_table(path)
    names = (table.schema.metadata or {}).get(b"classes", b"").decode().split("\n")
    return names, {record["name"]: np.asarray(record["probs"], np.float64) for record in table.to_pylist()}


def per_class(rows: np.ndarray, labels: np.ndarray, limit: int) -> np.ndarray:
    """The first ``limit`` rows of each label, ascending."""
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    place = np.arange(len(rows)) - np.searchsorted(ordered, ordered, side="left")
    return np.sort(rows[order[place < limit]])


class _Summer:
    """Sums a block's probabilities by label, so that a table of the classes moves and not one of the images."""

    def __init__(self, folder: str, settings: EvaluateSettings, actors: int) -> None:
        from megu_dist.metrics.predict import Predictor

        self.predictor = Predictor({"model": folder}, settings, actors)

    def __call__(self, block: Arrays) -> Arrays:
        probs = self.predictor.probabilities("model", block["image"])
        labels = np.unique(block["label"])
        return {
            "label": labels,
            "count": np.array([(block["label"] == c).sum() for c in labels]),
            "probs": np.stack([probs[block["label"] == c].sum(0, dtype=np.float64) for c in labels]),
        }
