"""Accuracy and mean cross-entropy (nats) on each part.

``acc_retain_train``, ``acc_retain_test``: higher is better. ``acc_forget_train``, ``acc_forget_test``: closer to the
retrained model's is better (near 0 for a forgotten class, near test accuracy for a random forget set).
``acc_retain_test_masked``, where whole classes are forgotten: the best of the retained classes counts as the prediction.
A model that never saw a class cannot take others for it; of the original model, this is what retraining can hope for.
``acc_already_*``: on classes that earlier requests forgot, where there are any; 0 is right.
"""

from __future__ import annotations

import numpy as np

from megu_dist.config.registry import register
from megu_dist.metrics.base import Numbers, Parts, by_rows, scope


@register("metric", "accuracy")
@scope("model")
def accuracy(parts: Parts, seed: int) -> Numbers:
    """Accuracy and mean loss on retained and forgotten, training and test images."""
    found = {name: part for name, part in parts.items() if len(part)}
    numbers = {f"acc_{name}": part.accuracy for name, part in found.items()}
    numbers |= {f"loss_{name}": float(part.loss.mean()) for name, part in found.items()}
    retained, forgotten = parts.get("retain_test"), parts.get("forget_test")
    if retained is not None and forgotten is not None and len(retained) and len(forgotten):
        labels = [part.label for name, part in found.items() if name in ("forget_test", "already_test")]
        gone = np.setdiff1d(np.concatenate(labels), retained.label)
        if len(gone):
            best = by_rows(lambda probs: _best(probs, gone), retained.probs)
            numbers["acc_retain_test_masked"] = float((best == retained.label).mean())
    return numbers


def _best(probs: np.ndarray, without: np.ndarray) -> np.ndarray:
    """(N,) the likeliest of the other classes."""
    probs = probs.copy()
    probs[:, without] = -1
    return probs.argmax(1)
