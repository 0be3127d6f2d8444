"""The transition matrix T: ratings turned into probabilities, row by row (design §2.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from megu_dist.errors import UserError


@dataclass(frozen=True)
class Transition:
    """``matrix`` (R, C) row-stochastic; row i belongs to class ``labels[i]``."""

    matrix: np.ndarray
    labels: tuple[int, ...]

    def rows_for(self, labels: np.ndarray) -> np.ndarray:
        """(N, C): the row of each label."""
        place = {label: i for i, label in enumerate(self.labels)}
        return self.matrix[[place[int(label)] for label in labels]]

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Transition:
        """From ``transition.json``."""
        return cls(np.asarray(data["transition"], np.float64), tuple(data["row_labels"]))


def from_ratings(ratings: np.ndarray, labels: list[int], tau: float, exclude_self: bool) -> np.ndarray:
    """T[i, j] = softmax_j(r[i, j] / τ), float64 (R, C); with ``exclude_self``, T[i, y_i] = 0, renormalised.

    Raises :class:`UserError` for ratings that are not numbers in [0, 10].
    """
    if not np.isfinite(ratings).all() or ratings.min() < 0 or ratings.max() > 10 + 1e-6:
        raise UserError("the oracle gave ratings outside [0, 10]")
    score = ratings / tau
    if exclude_self:
        score[np.arange(len(labels)), labels] = -np.inf
    weight = np.exp(score - score.max(1, keepdims=True))
    return weight / weight.sum(1, keepdims=True)
