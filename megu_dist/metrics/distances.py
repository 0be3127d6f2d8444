"""Distances between the unlearned and the retrained model's outputs on forgotten images; smaller is better.

``kl_forget``: mean KL(p_θr ‖ p_θu) in nats on forgotten test images (training images where the scenario has no
forgotten test images); ``js_forget``: Jensen-Shannon divergence on the same images, in nats, at most ln 2.
``activation_distance``: mean L2 distance of the softmax outputs on forgotten training images (Golatkar et al. 2020,
on outputs rather than weights).
"""

from __future__ import annotations

import numpy as np

from megu_dist.config.registry import register
from megu_dist.metrics.base import Numbers, Parts, by_rows, scope

TINY = 1e-12


@register("metric", "distances")
@scope("versus")
def distances(ours: Parts, reference: Parts, _: Numbers, __: Numbers) -> Numbers:
    """KL and JS divergence, activation distance to the retrained model on forgotten images."""
    name = "forget_test" if len(ours.get("forget_test", ())) else "forget_train"
    p, q = reference[name].probs, ours[name].probs
    trained = ours["forget_train"].probs, reference["forget_train"].probs
    return {
        "kl_forget": float(max(by_rows(_kl, p, q).mean(), 0.0)),
        "js_forget": float(max(by_rows(_js, p, q).mean(), 0.0)),
        "activation_distance": float(by_rows(_distance, *trained).mean()),
    }


def _kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    p, q = p.astype(np.float64), q.astype(np.float64)
    return (p * (np.log(p + TINY) - np.log(q + TINY))).sum(1)


def _js(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    middle = (p.astype(np.float64) + q) / 2
    return (_kl(p, middle) + _kl(q, middle)) / 2


def _distance(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return np.linalg.norm(p.astype(np.float64) - q, axis=1)
