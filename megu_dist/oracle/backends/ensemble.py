"""Weighted mean of other oracles, in one replica."""

from __future__ import annotations

import asyncio
import inspect
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from megu_dist.config.registry import lookup, register
from megu_dist.config.schema import OracleSettings
from megu_dist.errors import UserError, nearest
from megu_dist.oracle.base import About, Pair, Rating


@dataclass(kw_only=True)
class EnsembleSettings(OracleSettings):
    """``members``: oracle name → its settings and its ``weight`` (default 1)."""

    members: dict[str, Any] = field(default_factory=lambda: {"embedding": {}})
    images: int = 0
    shortlist: int = 32
    pairs_per_request: int = 8


@register("oracle", "ensemble", EnsembleSettings)
class EnsembleOracle:
    """Weighted mean of other oracles (oracle.members={embedding: {weight: 1}, clip: {path: …, weight: 2}})."""

    def __init__(self, settings: EnsembleSettings) -> None:
        parts = members(settings)
        self.weights = np.array([weight for _, weight in parts])
        self.backends = [lookup("oracle", part.name).target(part) for part, _ in parts]
        self.wordings = [len(_about(part).prompts) for part, _ in parts]

    @classmethod
    def about(cls, settings: EnsembleSettings) -> About:
        """Of all members; asked in as many wordings as the member that has most."""
        parts = members(settings)
        told = [_about(part) for part, _ in parts]
        wordings = max(len(one.prompts) for one in told)
        prompts = tuple("+".join(one.prompts[p % len(one.prompts)] for one in told) for p in range(wordings))
        identity = "+".join(f"{weight:g}*{one.id}" for one, (_, weight) in zip(told, parts, strict=True))
        stand_ins = [one.stand_in for one in told]
        stand_in = "; ".join(stand_ins) if all(stand_ins) else ""
        symmetric, flat = all(one.symmetric for one in told), all(one.flat for one in told)
        return About(f"ensemble:{identity}", stand_in, prompts, symmetric, flat)

    async def rate(self, pairs: list[Pair]) -> list[Rating]:
        """The mean over the members that answer; NaN where none does."""
        answers = await asyncio.gather(*(self._member(k, pairs) for k in range(len(self.backends))))
        values = np.array([[rating.value for rating in row] for row in answers])
        weights = np.where(np.isnan(values), 0.0, self.weights[:, None])
        total = weights.sum(0)
        mean = np.where(total > 0, (weights * np.nan_to_num(values)).sum(0) / np.maximum(total, 1e-12), np.nan)
        return [
            Rating(
                float(mean[i]),
                sum(row[i].prompt_tokens for row in answers),
                sum(row[i].answer_tokens for row in answers),
            )
            for i in range(len(pairs))
        ]

    async def _member(self, place: int, pairs: list[Pair]) -> list[Rating]:
        backend, wordings = self.backends[place], self.wordings[place]
        asked = [pair._replace(phrasing=pair.phrasing % wordings) for pair in pairs]
        if inspect.iscoroutinefunction(backend.rate):
            return list(await backend.rate(asked))
        return list(await asyncio.to_thread(backend.rate, asked))


def members(settings: EnsembleSettings) -> list[tuple[OracleSettings, float]]:
    """The members' settings and weights. Raises :class:`UserError` for an unknown member or key, or no weight at all."""
    out: list[tuple[OracleSettings, float]] = []
    for name, given in settings.members.items():
        if name == "ensemble":
            raise UserError("oracle.members: an ensemble cannot be a member of itself")
        kind = lookup("oracle", name).settings
        options = dict(given or {})
        weight = float(options.pop("weight", 1.0))
        known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
        for key in options:
            if key not in known:
                raise UserError(f"oracle.members.{name}.{key}: no such setting; {nearest(key, known)}")
        if weight < 0:
            raise UserError(f"oracle.members.{name}.weight={weight:g}: must be at least 0")
        out.append((kind(name=name, **options), weight))  # type: ignore[misc]
    if not out or sum(weight for _, weight in out) == 0:
        raise UserError("oracle.members: name at least one oracle with a weight above 0")
    return out


def _about(settings: OracleSettings) -> About:
    found: About = lookup("oracle", settings.name).target.about(settings)
    return found
