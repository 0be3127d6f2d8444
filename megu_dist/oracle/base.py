"""What an oracle backend offers: ratings of how much two concepts share visually."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

MAX_RATING = 10.0


@dataclass(frozen=True)
class Concept:
    """A class (or fine class) as the oracle sees it; ``images`` are encoded examples (PNG or JPEG)."""

    name: str
    description: str = ""
    images: tuple[bytes, ...] = ()

    @cached_property
    def key(self) -> str:
        """SHA-256 of all that a backend may look at."""
        digest = hashlib.sha256(repr((self.name, self.description)).encode())
        for image in self.images:
            digest.update(hashlib.sha256(image).digest())
        return digest.hexdigest()


class Pair(NamedTuple):
    """One question. ``phrasing`` picks the wording, for backends that have several."""

    first: Concept
    second: Concept
    phrasing: int = 0


class Rating(NamedTuple):
    """``value`` in [0, 10]: 0 nothing in common, 10 the same thing; NaN where the oracle gave no usable answer."""

    value: float
    prompt_tokens: int = 0
    answer_tokens: int = 0


@dataclass(frozen=True)
class About:
    """What the driver must know of a backend before, or without, starting it."""

    id: str  # model and version: stored ratings are found by it
    stand_in: str = ""  # "" for a real oracle; else what it cannot see, shown in the report
    prompts: tuple[str, ...] = ("",)  # hash of each wording that it can ask in
    symmetric: bool = True  # rate(a, b) = rate(b, a) by construction: one order is enough
    flat: bool = False  # rates everything alike by design (an ablation), which is not a fault then


class Oracle(Protocol):
    """A backend lives in a Serve replica; it is constructed from its settings.

    ``rate`` may be a coroutine function when the backend waits for others rather than computes.
    """

    def __init__(self, settings: Any) -> None: ...

    @classmethod
    def about(cls, settings: Any) -> About:
        """Runs on the driver, loads no model. Raises :class:`~megu_dist.errors.UserError` for settings that cannot work."""

    def rate(self, pairs: list[Pair]) -> list[Rating] | Awaitable[list[Rating]]:
        """One rating per pair, in order; the outcome for a pair does not depend on the others."""
