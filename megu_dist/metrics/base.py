"""What a metric sees: per-image predictions of a model on the four parts of the data.

A metric is a registered function. ``scope = "model"`` takes one model's predictions; ``scope = "versus"`` takes the
unlearned and the retrained model's. A metric whose images do not exist (no forgotten test images in the random
scenario) is absent from the result, not zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from megu_dist.errors import UserError

PARTS = ("retain_train", "forget_train", "retain_test", "forget_test", "already_train", "already_test")


@dataclass(frozen=True)
class Predictions:
    """Arrays over the N images of one part: label, prediction, loss, entropy (nats), probs (N, C).

    ``probs`` may be on disk and larger than memory: see :func:`by_rows`.
    """

    label: np.ndarray
    prediction: np.ndarray
    loss: np.ndarray
    entropy: np.ndarray
    probs: np.ndarray

    def __len__(self) -> int:
        return len(self.label)

    @property
    def accuracy(self) -> float:
        """Share of images whose prediction is the label."""
        return float((self.prediction == self.label).mean())


Parts = dict[str, Predictions]
Numbers = dict[str, float]
CHUNK_BYTES = 64 << 20  # of probabilities that are in memory at a time


def by_rows(function: Callable[..., np.ndarray], *arrays: np.ndarray) -> np.ndarray:
    """``function(*arrays)``, (N,) from arrays of N rows, worked out for some rows at a time."""
    rows = max(1, CHUNK_BYTES // max(1, arrays[0][:1].nbytes))
    starts = range(0, max(1, len(arrays[0])), rows)
    return np.concatenate([function(*(np.asarray(array[s : s + rows]) for array in arrays)) for s in starts])


def scope(name: str) -> Callable[[Any], Any]:
    """Marks a metric function as ``model`` or ``versus``."""

    def mark(function: Any) -> Any:
        function.scope = name
        return function

    return mark


def compute(models: dict[str, Parts], seed: int) -> tuple[dict[str, Numbers], Numbers | None]:
    """All registered metrics: per model, and of ``unlearned`` against ``retrained`` (None without it)."""
    from megu_dist.config.registry import components

    for name, parts in models.items():
        if not all(by_rows(lambda probs: np.isfinite(probs).all(1), part.probs).all() for part in parts.values()):
            raise UserError(
                f"the {name} model's predictions are not numbers: its training diverged; set train.lr lower"
            )
    functions = [component.target for component in components("metric").values()]
    single = [f for f in functions if f.scope == "model"]
    per_model = {name: _merge(f(parts, seed) for f in single) for name, parts in models.items()}
    if not {"unlearned", "retrained"} <= models.keys():
        return per_model, None
    return per_model, against_retrained("unlearned", models, per_model)


def against_retrained(name: str, models: dict[str, Parts], per_model: dict[str, Numbers]) -> Numbers:
    """All metrics that compare two models: of ``name`` and ``retrained``."""
    from megu_dist.config.registry import components

    pairs = [c.target for c in components("metric").values() if c.target.scope == "versus"]
    reference = "retrained"
    return _merge(f(models[name], models[reference], per_model[name], per_model[reference]) for f in pairs)


def _merge(results: Any) -> Numbers:
    return {name: float(value) for result in results for name, value in result.items()}
