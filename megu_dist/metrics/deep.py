"""Metrics that need the models themselves and not only their predictions: computed where ``evaluate.deep`` names them.

Each is a registered function with ``scope = "deep"`` that takes a :class:`DeepJob` and returns numbers of one model.
A Ray task for each model and metric.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from megu_dist.config.registry import lookup
from megu_dist.config.schema import EvaluateSettings
from megu_dist.data import stream
from megu_dist.data.base import Source
from megu_dist.data.plan import hash_uniform
from megu_dist.data.readers import ImageReader, without_bad
from megu_dist.metrics.base import Numbers
from megu_dist.models.preprocess import Preprocess

if TYPE_CHECKING:
    from torch import Tensor, nn

LIMIT = 2048  # forgotten images looked at
PROBE_IMAGES = 20_000  # training images of the linear probe, over all classes
PROBE_PER_CLASS = 200


@dataclass(frozen=True)
class DeepJob:
    """What a deep metric of one model may look at. Rows are of the training split unless said otherwise."""

    folder: str  # the model that is measured
    original: str  # the model before unlearning
    source: Source
    preprocess: Preprocess
    forget_rows: np.ndarray
    probe_rows: np.ndarray  # class-balanced, forgotten classes among them
    test_rows: np.ndarray  # images of forgotten classes that were never trained on, in ``test_split``
    test_split: str
    fine: bool  # classes are fine ones under the model's coarse labels
    settings: EvaluateSettings
    seed: int
    tasks: int = 1  # metrics computed at the same time

    def load(self, folder: str) -> nn.Module:
        """A model in evaluation mode on the device."""
        from megu_dist.models.checkpoint import open_checkpoint

        return open_checkpoint(folder).load().eval().to(self.device)

    @property
    def device(self) -> Any:
        import torch

        return torch.device("cuda" if self.settings.num_gpus > 0 and torch.cuda.is_available() else "cpu")

    def images(self, rows: np.ndarray, split: str = "train") -> tuple[Tensor, np.ndarray]:
        """uint8 (N, C, H, W) on the CPU, and the label (or fine label) of each."""
        import torch

        reader = ImageReader(self.source, split, self.preprocess, keep_id=self.fine, skip_bad=True)
        read = without_bad(reader({"row": rows}))
        return torch.from_numpy(read["image"]), np.array(read["fine" if self.fine else "label"])

    def some(self, rows: np.ndarray) -> np.ndarray:
        """At most :data:`LIMIT` of the rows, chosen by the seed."""
        return np.sort(rows[np.argsort(hash_uniform(self.seed, 51, rows), kind="stable")[:LIMIT]])

    def inputs(self, images: Tensor) -> Tensor:
        """What the model takes."""
        return self.preprocess.normalise(images.to(self.device).float() / 255)

    def logits(self, model: nn.Module, images: Tensor) -> Tensor:
        """(N, classes) without gradients."""
        import torch

        with torch.inference_mode():
            parts = images.split(self.settings.batch_size)
            return torch.cat([model(pixel_values=self.inputs(part)).logits.float() for part in parts])


def balanced(rows: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """The same number of rows of every class, as far as there are, chosen by the seed."""
    classes = np.unique(labels)
    count = int(np.clip(PROBE_IMAGES // len(classes), 2, PROBE_PER_CLASS))
    order = np.argsort(hash_uniform(seed, 52, rows), kind="stable")
    return np.sort(np.concatenate([rows[order[labels[order] == label][:count]] for label in classes]))


def run_deep(
    names: list[str], job: DeepJob, folders: dict[str, str], done: Callable[[int], None] = lambda _: None
) -> dict[str, Numbers]:
    """All named metrics of all models, by model."""
    work = [(model, name) for model in folders for name in names]
    jobs = [replace(job, folder=folders[model], tasks=len(work)) for model, _ in work]
    if stream.here():
        numbers = [_one(name, one) for (_, name), one in zip(work, jobs, strict=True)]
    else:
        import ray

        task = ray.remote(_one).options(num_cpus=1, num_gpus=job.settings.num_gpus, max_retries=2)
        shared = ray.put(job.source)
        numbers = ray.get([task.remote(name, replace(one, source=None), shared)  # type: ignore[arg-type]
                           for (_, name), one in zip(work, jobs, strict=True)])  # fmt: skip
    found: dict[str, Numbers] = {model: {} for model in folders}
    for (model, _), values in zip(work, numbers, strict=True):
        found[model] |= values
    done(len(work))
    return found


def _one(name: str, job: DeepJob, source: Source | None = None) -> Numbers:
    import torch

    import megu_dist  # noqa: F401  (registers the CIFAR ResNet)
    from megu_dist.engine.base import set_threads

    set_threads(0, job.tasks)
    torch.manual_seed(job.seed)
    job = job if source is None else replace(job, source=source)
    numbers = lookup("metric", name).target(job)
    return {key: float(value) for key, value in numbers.items()}
