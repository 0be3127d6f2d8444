"""Pooled features of a seeded sample of test images, for every model at once: a Ray Data job with model actors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from megu_dist.config.schema import EvaluateSettings
from megu_dist.data import stream
from megu_dist.data.base import Source
from megu_dist.data.plan import hash_uniform
from megu_dist.data.readers import Arrays, ImageReader
from megu_dist.data.split import scan
from megu_dist.models.checkpoint import Checkpoint, open_checkpoint

Features = dict[str, dict[str, np.ndarray]]  # model → layer → (N, D) float32


def sample(source: Source, classes: list[int], count: int, seed: int) -> np.ndarray:
    """Ascending test rows: the ``count`` of each class with the smallest seeded hash (all, where a class has fewer)."""
    table, _ = scan(source, "test", None, columns=("row", "label"))
    rows, labels = table["row"].to_numpy(), table["label"].to_numpy()
    order = np.argsort(hash_uniform(seed, 41, rows), kind="stable")
    return np.sort(np.concatenate([rows[order[labels[order] == label][:count]] for label in classes]))


def extract(
    source: Source,
    rows: np.ndarray,
    models: dict[str, Checkpoint],
    layers: int,
    settings: EvaluateSettings,
    actors: int,
    progress: Callable[[int], None],
) -> tuple[np.ndarray, list[str], Features]:
    """Labels (N,) and ids of ``rows`` of the test split, and every model's features of them, in that order."""
    preprocess = next(iter(models.values())).preprocess
    reader = ImageReader(source, "test", preprocess, keep_id=True)
    folders = {name: str(model.folder) for name, model in models.items()}
    arguments = {"folders": folders, "layers": layers, "settings": settings, "actors": actors}
    chunk = stream.task_rows(preprocess.image_bytes)
    blocks, done = [], 0
    for block in stream.blocks(rows, reader, chunk, _Extractor, arguments, actors, settings.num_gpus):
        blocks.append({key: np.array(value) for key, value in block.items()})
        done += len(block["row"])
        progress(done)
    order = np.argsort(np.concatenate([b["row"] for b in blocks]), kind="stable")
    merged = {key: np.concatenate([b[key] for b in blocks])[order] for key in blocks[0]}
    features: Features = {name: {} for name in models}
    for key, value in merged.items():
        if "/" in key:
            model, layer = key.split("/", 1)
            features[model][layer] = value
    return merged["label"], merged["id"].tolist(), features


class _Extractor:
    """Holds all models, so that each image is decoded once."""

    def __init__(self, folders: dict[str, str], layers: int, settings: EvaluateSettings, actors: int) -> None:
        import torch

        import megu_dist  # noqa: F401  (registers the CIFAR ResNet)
        from megu_dist.engine.base import set_threads

        set_threads(0, actors)
        self.device = torch.device("cuda" if settings.num_gpus > 0 and torch.cuda.is_available() else "cpu")
        self.layers, self.batch_size = layers, settings.batch_size
        self.models = {}
        for name, folder in folders.items():
            checkpoint = open_checkpoint(folder)
            model = checkpoint.load().to(self.device, memory_format=torch.channels_last)
            self.models[name] = (model, checkpoint.preprocess)

    def __call__(self, block: Arrays) -> Arrays:
        """{row, id, label, image} → {row, id, label, "<model>/<layer>": (N, D)}."""
        import torch

        from megu_dist.models.layers import recorded

        out = {key: block[key] for key in ("row", "id", "label")}
        for name, (model, preprocess) in self.models.items():
            parts: dict[str, list[np.ndarray]] = {}
            with recorded(model, self.layers) as found, torch.inference_mode():
                for start in range(0, len(block["row"]), self.batch_size):
                    images = np.array(block["image"][start : start + self.batch_size])
                    inputs = preprocess.normalise(torch.from_numpy(images).to(self.device).float() / 255)
                    found.clear()
                    model(pixel_values=inputs.contiguous(memory_format=torch.channels_last))
                    for layer, values in found.items():
                        parts.setdefault(layer, []).append(values.cpu().numpy())
            out |= {f"{name}/{layer}": np.concatenate(values) for layer, values in parts.items()}
        return out
