"""Which classes are worth asking an expensive oracle about: near in name, or where the classifier sends forget images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from megu_dist.oracle.base import Concept, Pair


def candidates(
    size: int, labels: list[int], classes: int, scores: list[np.ndarray], gone: Sequence[int] = ()
) -> list[list[int]]:
    """Per forget concept, the ``size`` best other classes (ascending); all of them for 0 or a size that covers them.

    ``scores`` are (R, C) arrays, higher is nearer; they take turns, so that the union holds the best of each. Classes
    that are ``gone`` are nobody's candidates.
    """
    if size <= 0 or size >= classes - 1:
        return [[j for j in range(classes) if j != label and j not in gone] for label in labels]
    chosen = []
    for row, label in enumerate(labels):
        barred = {label, *gone}
        orders = [[j for j in np.argsort(-score[row], kind="stable").tolist() if j not in barred] for score in scores]
        taken: dict[int, None] = {}
        for turn in zip(*orders, strict=True):
            for other in turn:
                if len(taken) < size:
                    taken[other] = None
        chosen.append(sorted(taken))
    return chosen


def name_similarity(class_names: list[str], labels: list[int]) -> np.ndarray:
    """(R, C) ratings by sentence embeddings of the names; a Ray task, so that the driver loads no model."""
    import ray

    return np.asarray(ray.get(ray.remote(num_cpus=1)(_similarity).remote(class_names, labels)))


def _similarity(class_names: list[str], labels: list[int]) -> list[list[float]]:
    from megu_dist.oracle.backends.embedding import EmbeddingOracle, EmbeddingSettings

    backend = EmbeddingOracle(EmbeddingSettings(name="embedding"))
    concepts = [Concept(name) for name in class_names]
    return [[r.value for r in backend.rate([Pair(concepts[i], other) for other in concepts])] for i in labels]
