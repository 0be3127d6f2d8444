"""Entropy membership inference (Chundawat et al. 2023, "Can bad teaching induce forgetting?").

A logistic regression learns, from the model's prediction entropy, to tell retained training images (members) from
retained test images (non-members); ``mia`` is the share of forgotten training images that it calls members. Compare
with the retrained model's value, not with 0. Deviates: both sides are cut to equal size, so that the prior is even.
"""

from __future__ import annotations

import numpy as np

from megu_dist.config.registry import register
from megu_dist.metrics.base import Numbers, Parts, scope


@register("metric", "mia")
@scope("model")
def mia(parts: Parts, seed: int) -> Numbers:
    """Share of forgotten training images that an entropy attack calls members."""
    members, others, forgotten = (parts.get(n) for n in ("retain_train", "retain_test", "forget_train"))
    if not members or not others or not forgotten:
        return {}
    from sklearn.linear_model import LogisticRegression

    size = min(len(members), len(others))
    rng = np.random.default_rng([seed, 5])
    x = np.concatenate([rng.permutation(members.entropy)[:size], rng.permutation(others.entropy)[:size]])
    y = np.repeat([1, 0], size)
    attack = LogisticRegression(class_weight="balanced").fit(x[:, None], y)
    return {"mia": float(attack.predict(forgotten.entropy[:, None]).mean())}
