"""The classifier's own soft confusion on validation images: the ablation without an oracle.

A rating is linear in the logarithm of the mean probability that the classifier gives to the other class, averaged over
both directions, so that with τ = 10 / log(10⁴) ≈ 1.09 the row of T is proportional to those probabilities.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megu_dist.config.registry import register
from megu_dist.config.schema import OracleSettings
from megu_dist.errors import UserError
from megu_dist.oracle.base import MAX_RATING, About, Pair, Rating

FLOOR = 1e-4  # of the largest confusion: what is rated 0


@dataclass(kw_only=True)
class ConfusionSettings(OracleSettings):
    """How the confusions are measured."""

    path: str | None = None  # set by the run itself, which measures the classifier of model.path
    images_per_class: int = 200  # validation images looked at
    pairs_per_request: int = 64
    max_batch_size: int = 64


@register("oracle", "confusion", ConfusionSettings)
class ConfusionOracle:
    """What the classifier itself confuses on validation images (ablation); needs data.validation_fraction."""

    measured = True  # the run makes the table itself

    def __init__(self, settings: ConfusionSettings) -> None:
        from megu_dist.oracle.confusion import read_confusion

        names, self.rows = read_confusion(Path(str(settings.path)))
        self.column = {name: place for place, name in enumerate(names)}

    @classmethod
    def about(cls, settings: ConfusionSettings) -> About:
        """The table's content."""
        if settings.path is None or not Path(settings.path).is_file():
            raise UserError("oracle=confusion needs model.path, whose confusions it measures on validation images")
        digest = hashlib.sha256(Path(settings.path).read_bytes()).hexdigest()[:12]
        return About(f"confusion:{digest}", "the classifier's own confusions: no oracle was asked", symmetric=False)

    def rate(self, pairs: list[Pair]) -> list[Rating]:
        """10 · (1 + log(p / p_max) / log(1 / FLOOR)), at least 0; NaN for a class without validation images."""
        return [Rating(self._rate(pair)) for pair in pairs]

    def _rate(self, pair: Pair) -> float:
        row = self.rows.get(pair.first.name)
        if row is None or pair.second.name not in self.column:
            return float("nan")
        if pair.first.name == pair.second.name:
            return MAX_RATING
        own = self.column.get(pair.first.name)  # none for a fine class: each coarse class is another
        others = row if own is None else np.delete(row, own)
        share = max(row[self.column[pair.second.name]] / max(others.max(), 1e-30), FLOOR)
        return float(MAX_RATING * (1 + np.log(share) / np.log(1 / FLOOR)))
