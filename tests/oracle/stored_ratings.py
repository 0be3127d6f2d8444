"""Fills that need no oracle: every answer is in the store already."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from megu_dist.config.schema import OracleSettings
from megu_dist.oracle import fill as filling
from megu_dist.oracle import shortlist
from megu_dist.oracle.backends.openai import OpenAISettings
from megu_dist.oracle.base import Concept, Rating
from megu_dist.oracle.fill import Job
from megu_dist.oracle.ratings import RatingStore

Opinion = Callable[[str, str, int], float]


def job(names: Sequence[str], labels: list[int], size: int = 0, tau: float = 1.0) -> Job:
    """Rows of ``labels`` against all other names, or those of smallest index."""
    nearest = [[-float(j) for j in range(len(names))]] * len(labels)
    import numpy as np

    candidates = shortlist.candidates(size, labels, len(names), [np.array(nearest)])
    return Job([Concept(name) for name in names], labels, candidates, tau, True)


def asking(**more: Any) -> OpenAISettings:
    """An oracle whose answer depends on order and wording; nothing listens at its address."""
    given = {"name": "openai", "model": "m", "base_url": "http://127.0.0.1:9/v1", "shortlist": 0, "images": 0}
    return OpenAISettings(**{**given, **more})


def remember(
    folder: Path, settings: OracleSettings, work: Job, opinion: Opinion, tokens: tuple[int, int] = (0, 0)
) -> int:
    """Stores ``opinion(first, second, wording)`` for every question of a fill; how many those are."""
    known = filling.about(settings)
    pairs = {pair for row in filling.questions(work, settings, known) for asked in row for pair in asked}
    rated = [(pair, Rating(opinion(pair.first.name, pair.second.name, pair.phrasing), *tokens)) for pair in pairs]
    RatingStore(folder, known).add(sorted(rated, key=lambda item: (item[0].phrasing, item[0].first.name)))
    return len(rated)


def refill(settings: OracleSettings, work: Job, folder: Path, out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What ``fill`` returns and what it writes."""
    out.mkdir(exist_ok=True)
    info = filling.fill(settings, work, folder, out, lambda _: None)
    return info, json.loads((out / "transition.json").read_text())
