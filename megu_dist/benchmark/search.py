"""Tuning with the same budget for every method: a quasi-random search on validation images.

The first trial is the method's default settings (its paper's, as far as they carry over); the others are scrambled
Sobol points of the space that the method's class declares (Bergstra & Bengio 2012 on random search; quasi-random
points cover few dimensions more evenly). Trials do not depend on each other, so that they run at the same time and a
stopped search goes on where it was.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

from megu_dist.methods.base import Space


def trials(space: Space, name: str, count: int) -> list[tuple[str, ...]]:
    """Words of ``count`` trials; the same for the same method name."""
    found: list[tuple[str, ...]] = [()]
    if not space or count < 2:
        return found * count
    from scipy.stats import qmc

    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4])
    points = qmc.Sobol(len(space), seed=seed).random_base2(math.ceil(math.log2(count)))[: count - 1]
    for point in points:
        found.append(tuple(f"{key}={_at(space[key], x)}" for key, x in zip(space, point, strict=True)))
    return found


def _at(dimension: Sequence[Any], x: float) -> str:
    """The value at ``x`` in [0, 1) of a dimension."""
    kind, *bounds = dimension
    if kind == "choice":
        return str(bounds[int(x * len(bounds))])
    low, high = bounds
    if kind == "log":
        return f"{math.exp(math.log(low) + x * (math.log(high) - math.log(low))):.4g}"
    if kind == "int":
        return str(low + int(x * (high - low + 1)))
    return f"{low + x * (high - low):.4g}"
