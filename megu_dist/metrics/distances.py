"""Distances between the unlearned and the retrained model's outputs on forgotten images; smaller is better.

``kl_forget``: mean KL(p_θr ‖ p_θu) in nats on forgotten test images (training images where the scenario has no
forgotten test images); ``js_forget``: Jensen-Shannon divergence on the same images, in nats, at most ln 2.
``activation_distance``: mean L2 distance of the softmax outputs on forgotten training images (Golatkar et al. 2020,
on outputs rather than weights).
"""

from __future__ import annotations

import numpy as np

from megu_dist.config.registry import register
from megu_dist.metrics.base import Numbers, Parts, scope

TINY = 1e-12


@register("metric", "distances")
@scope("versus")
def distances(ours: Parts, reference: Parts, _: Numbers, __: Numbers) -> Numbers:
    """KL and JS divergence, activation distance to the retrained model on forgotten images."""
    name = "forget_test" if len(ours.get("forget_test", ())) else "forget_train"
    p, q = (parts[name].probs.astype(np.float64) for parts in (reference, ours))
    kl = (p * (np.log(p + TINY) - np.log(q + TINY))).sum(1).mean()
    middle = (p + q) / 2
    js = sum((x * (np.log(x + TINY) - np.log(middle + TINY))).sum(1).mean() for x in (p, q)) / 2
    a, b = (parts["forget_train"].probs.astype(np.float64) for parts in (ours, reference))
    return {
        "kl_forget": float(max(kl, 0.0)),
        "js_forget": float(max(js, 0.0)),
        "activation_distance": float(np.linalg.norm(a - b, axis=1).mean()),
    }
