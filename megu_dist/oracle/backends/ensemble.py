"""Weighted mean of other oracles, in one replica."""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, cast

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from megu_dist.config.registry import lookup, register
from megu_dist.config.schema import OracleSettings
from megu_dist.errors import UserError, nearest
from megu_dist.oracle.base import About, Pair, Rating


@dataclass(kw_only=True)
class EnsembleSettings(OracleSettings):
    """Whose mean it is."""

    members: dict[str, Any] = field(
        default_factory=lambda: {"embedding": {}}
    )  # oracle name → its settings and its weight (default 1)
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
        self.locks = [threading.Lock() for _ in parts]  # requests overlap here; a member that computes expects one

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

        def compute() -> list[Rating]:
            with self.locks[place]:
                return list(backend.rate(asked))

        return await asyncio.to_thread(compute)


def members(settings: EnsembleSettings) -> list[tuple[OracleSettings, float]]:
    """The members' settings and weights. Raises :class:`UserError` for an unknown member or key, or no weight "
    "at all."""
    out: list[tuple[OracleSettings, float]] = []
    for name, given in settings.members.items():
        if name == "ensemble":
            raise UserError("oracle.members: an ensemble cannot be a member of itself; name other oracles")
        kind = lookup("oracle", name).settings
        options = {} if given is None else given
        if not isinstance(options, Mapping):
            raise UserError(f"oracle.members.{name}={given!r}: must be settings, as in {{{name}: {{weight: 1}}}}")
        known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
        for key in options:
            if key not in [*known, "weight"]:
                raise UserError(f"oracle.members.{name}.{key}: no such setting; {nearest(key, [*known, 'weight'])}")
        weight = options.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise UserError(f"oracle.members.{name}.weight={weight!r}: must be a number of at least 0")
        out.append((_typed(kind, name, {key: options[key] for key in options if key != "weight"}), float(weight)))
    if not out or sum(weight for _, weight in out) == 0:
        raise UserError("oracle.members: name at least one oracle with a weight above 0")
    return out


def _typed(kind: Any, name: str, options: dict[str, Any]) -> OracleSettings:
    """The member's settings, of the types that they are declared with."""
    try:
        return cast(
            OracleSettings, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind(name=name)), options))
        )
    except OmegaConfBaseException as error:
        told = str(error).strip().splitlines()[0]
        raise UserError(f"oracle.members.{name}.{getattr(error, 'key', '')}: {told}") from None


def _about(settings: OracleSettings) -> About:
    found: About = lookup("oracle", settings.name).target.about(settings)
    return found
