"""Accuracy and mean cross-entropy (nats) on each part.

``acc_retain_train``, ``acc_retain_test``: higher is better. ``acc_forget_train``, ``acc_forget_test``: closer to the
retrained model's is better (near 0 for a forgotten class, near test accuracy for a random forget set).
``acc_already_*``: on classes that earlier requests forgot, where there are any; 0 is right.
"""

from __future__ import annotations

from megu_dist.config.registry import register
from megu_dist.metrics.base import Numbers, Parts, scope


@register("metric", "accuracy")
@scope("model")
def accuracy(parts: Parts, seed: int) -> Numbers:
    """Accuracy and mean loss on retained and forgotten, training and test images."""
    found = {name: part for name, part in parts.items() if len(part)}
    return {f"acc_{name}": part.accuracy for name, part in found.items()} | {
        f"loss_{name}": float(part.loss.mean()) for name, part in found.items()
    }
