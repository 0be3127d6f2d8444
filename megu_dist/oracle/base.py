"""What an oracle backend offers: ratings of how much two concepts share visually."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

MAX_RATING = 10.0


@dataclass(frozen=True)
class Concept:
    """A class (or fine class) as the oracle sees it."""

    name: str
    description: str = ""


Pair = tuple[Concept, Concept]


class Oracle(Protocol):
    """A backend lives in a Serve replica; it is constructed from its settings."""

    identity: str  # model and version: part of the transition's provenance
    stand_in: str  # "" for a real oracle; else what it cannot see, shown in the report

    def rate(self, pairs: list[Pair]) -> list[float]:
        """One rating in [0, 10] per pair: 0 nothing in common, 10 the same thing."""
