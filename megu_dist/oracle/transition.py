"""The transition matrix T: ratings turned into probabilities, row by row (design §2.1)."""

from __future__ import annotations

from collections.abc import Sequence
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


def from_ratings(
    ratings: np.ndarray,
    labels: list[int],
    tau: float,
    exclude_self: bool,
    tail_mass: float = 0.0,
    gone: Sequence[int] = (),
) -> np.ndarray:
    """T[i, j] = softmax_j(r[i, j] / τ), float64 (R, C); with ``exclude_self``, T[i, y_i] = 0, renormalised.
    Columns ``gone`` are zero, too.

    Entries that are NaN were not rated (beyond the shortlist, or refused): they share ``tail_mass`` of their row
    equally, so that no class is impossible. A row without any rating becomes uniform.
    Raises :class:`UserError` for ratings outside [0, 10].
    """
    rated = ~np.isnan(ratings)
    if not (np.isfinite(ratings[rated]).all() and (ratings[rated] >= 0).all() and (ratings[rated] <= 10 + 1e-6).all()):
        raise UserError(
            f"the oracle gave ratings outside [0, 10], from {np.nanmin(ratings):g} to {np.nanmax(ratings):g}; "
            "its rate() must be mended"
        )
    allowed = np.ones_like(rated)
    allowed[:, list(gone)] = False
    if exclude_self:
        allowed[np.arange(len(labels)), labels] = False
    score = np.where(rated & allowed, ratings / tau, -np.inf)
    top = score.max(1, keepdims=True)
    weight = np.exp(score - np.where(np.isfinite(top), top, 0.0))
    head = weight.sum(1, keepdims=True)
    tail = (~rated & allowed).astype(np.float64)
    count = tail.sum(1, keepdims=True)
    share = np.where(count > 0, tail_mass, 0.0)
    share = np.where(head > 0, share, 1.0)
    return (1 - share) * weight / np.where(head > 0, head, 1.0) + share * tail / np.maximum(count, 1)
