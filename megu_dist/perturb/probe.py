"""What the original model's features, and not only its last layer, say about a forget image among retained classes.

θ_o was trained to tell the forgotten class from all others, so that its last layers say little else of a forget image: what
is left of p(j | x; θ_o) once the forgotten class is taken out is nearly the same for every image. Features from within the
model still tell such images apart. A logistic regression from them to the classes, fitted on retained images only, has not
seen the forgotten ones, as a retrained model has not. (Probes of features: Alain & Bengio 2016; this use of one is the
project's own, measured in docs/method.md.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from megu_dist.config.schema import PerturbSettings
from megu_dist.data import stream
from megu_dist.data.base import Source
from megu_dist.data.readers import ImageReader, without_bad
from megu_dist.models.preprocess import Preprocess
from megu_dist.perturb.frozen import Frozen

if TYPE_CHECKING:
    from torch import Tensor, nn

DECAY = 0.03  # of the squared weights for standardised features, beside the mean cross-entropy: docs/method.md
ITERATIONS = 200  # of L-BFGS at most


@dataclass(frozen=True)
class Probe:
    """Logistic regression on standardised features of width D; ``classes`` (K,) are those that it knows, ascending."""

    centre: np.ndarray  # (D,)
    scale: np.ndarray  # (D,)
    weight: np.ndarray  # (K, D)
    bias: np.ndarray  # (K,)
    classes: np.ndarray  # (K,)

    def log_probs(self, features: np.ndarray, num_classes: int) -> np.ndarray:
        """(N, D) → (N, C) float64; a class that it does not know is as unlikely as the unlikeliest that it does."""
        scores = ((features - self.centre) / self.scale).astype(np.float64) @ self.weight.T + self.bias
        highest = scores.max(1, keepdims=True)
        known = scores - highest - np.log(np.exp(scores - highest).sum(1, keepdims=True))
        out = np.repeat(known.min(1, keepdims=True), num_classes, 1)
        out[:, self.classes] = known
        return out


def fit(features: np.ndarray, labels: np.ndarray) -> Probe:
    """The probe of (N, D) features; at least two classes are among the (N,) labels."""
    from sklearn.linear_model import LogisticRegression

    centre, scale = features.mean(0), features.std(0) + 1e-5
    # scikit-learn weighs the summed cross-entropy by C against half the squared weights.
    found = LogisticRegression(C=1 / (2 * DECAY * len(labels)), max_iter=ITERATIONS)
    found.fit((features - centre) / scale, labels)
    weight, bias = found.coef_, found.intercept_
    if len(weight) == 1:  # of two classes, scikit-learn tells the second's score alone
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return Probe(centre, scale, weight, bias, found.classes_)


@contextmanager
def features_at(model: nn.Module, depth: float) -> Iterator[Callable[[], Tensor]]:
    """Within the block, what the last forward pass had at ``depth``: (N, D), pooled over quarters of the image.

    ``depth`` is a share of the model's blocks: 2/3 is after the sixth of eight. A model without a list of blocks is read
    before its last linear layer.
    """
    from megu_dist.models.blocks import blocks
    from megu_dist.models.layers import head, pool_quarters

    found: list[Tensor] = []

    def keep(output: object) -> None:
        pooled = pool_quarters(output)
        if pooled is not None:
            found[:] = [pooled.detach()]

    chain, last = blocks(model), head(model)
    if chain:
        _, block = chain[math.ceil(depth * len(chain) - 1e-6) - 1]
        handle = block.register_forward_hook(lambda module, inputs, output: keep(output))
    elif last is not None:
        handle = last.register_forward_pre_hook(lambda module, inputs: keep(inputs[0]))
    else:
        raise ValueError("perturb.probe_images: no block and no last layer was found in the model; set it to 0")
    try:
        yield lambda: found[0]
    finally:
        handle.remove()


class FeatureReader:
    """Holds the frozen original model; called by Ray Data with decoded blocks."""

    def __init__(self, model: str | Frozen, settings: PerturbSettings, actors: int) -> None:
        self.frozen = Frozen(model, settings, actors) if isinstance(model, str) else model
        self.settings = settings

    def __call__(self, block: dict[str, np.ndarray]) -> pa.Table:
        """{label, image} → label, features as fixed-size lists of float32."""
        import torch

        block, size = without_bad(block), self.settings.batch_size
        parts = []
        with torch.no_grad(), features_at(self.frozen.model, self.settings.probe_depth) as features:
            for start in range(0, len(block["label"]), size):
                self.frozen.logits(self.frozen.pixels(block["image"][start : start + size]))
                parts.append(features().float().cpu().numpy())
        found = np.concatenate(parts) if parts else np.empty((0, 1), np.float32)
        flat = pa.FixedSizeListArray.from_arrays(pa.array(found.ravel()), found.shape[1])
        return pa.table({"label": block["label"].astype(np.int64), "features": flat})


@dataclass(frozen=True)
class Lesson:
    """What a probe is to be learnt from: retained ``rows`` of the source."""

    source: Source
    rows: np.ndarray
    preprocess: Preprocess
    settings: PerturbSettings

    def learn(self, model: str | Frozen, actors: int, progress: Callable[[int], None] = lambda _: None) -> Probe | None:
        """The probe; None where the rows are of one class, of which there is nothing to tell. ``model``: or its folder."""
        reader = ImageReader(self.source, "train", self.preprocess, skip_bad=True)
        chunk = min(stream.task_rows(self.preprocess.image_bytes), max(16, -(-len(self.rows) // (4 * actors))))
        arguments = {"model": model, "settings": self.settings, "actors": actors}
        gpus = self.settings.num_gpus
        labels, features, done = [], [], 0
        for batch in stream.blocks(self.rows, reader, chunk, FeatureReader, arguments, actors, gpus, "pyarrow"):
            if len(batch):  # a block of images that cannot be read leaves none
                labels.append(batch["label"].to_numpy())
                features.append(batch["features"].combine_chunks().flatten().to_numpy().reshape(len(batch), -1))
            done += len(batch)
            progress(done)
        y = np.concatenate(labels)
        return fit(np.concatenate(features), y) if len(np.unique(y)) > 1 else None
