"""No opinion: every pair is rated alike. The ablation without guidance (with κ = 0, random labels)."""

from __future__ import annotations

from dataclasses import dataclass

from megu_dist.config.registry import register
from megu_dist.config.schema import OracleSettings
from megu_dist.oracle.base import MAX_RATING, Pair


@dataclass(kw_only=True)
class UniformSettings(OracleSettings):
    """Nothing to set."""


@register("oracle", "uniform", UniformSettings)
class UniformOracle:
    """Rates every pair alike: T becomes uniform (ablation)."""

    stand_in = "no oracle: every pair of classes is rated alike"
    identity = "uniform"

    def __init__(self, settings: UniformSettings) -> None:
        self.settings = settings

    def rate(self, pairs: list[Pair]) -> list[float]:
        """5 for each pair."""
        return [MAX_RATING / 2] * len(pairs)
