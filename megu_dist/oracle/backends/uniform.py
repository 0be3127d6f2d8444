"""No opinion: every pair is rated alike. The ablation without guidance (with κ = 0, random labels)."""

from __future__ import annotations

from dataclasses import dataclass

from megu_dist.config.registry import register
from megu_dist.config.schema import OracleSettings
from megu_dist.oracle.base import MAX_RATING, About, Pair, Rating


@dataclass(kw_only=True)
class UniformSettings(OracleSettings):
    """Nothing to set."""

    pairs_per_request: int = 64
    max_batch_size: int = 64


@register("oracle", "uniform", UniformSettings)
class UniformOracle:
    """Rates every pair alike: T becomes uniform (ablation)."""

    def __init__(self, settings: UniformSettings) -> None:
        self.settings = settings

    @classmethod
    def about(cls, settings: UniformSettings) -> About:
        """Always the same."""
        return About("uniform", "no oracle: every pair of classes is rated alike", flat=True)

    def rate(self, pairs: list[Pair]) -> list[Rating]:
        """5 for each pair."""
        return [Rating(MAX_RATING / 2)] * len(pairs)
