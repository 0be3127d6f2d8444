"""What a fill will cost, before it runs."""

from __future__ import annotations

from dataclasses import dataclass

from megu_dist.config.schema import OracleSettings
from megu_dist.oracle import prompts
from megu_dist.oracle.base import About, Concept, Pair
from megu_dist.oracle.ratings import RatingStore

CHARACTERS_PER_TOKEN = 4.0  # of English text, roughly, for byte-pair vocabularies


@dataclass(frozen=True)
class Estimate:
    """Numbers for one fill; ``measured``: tokens and seconds come from ratings that this oracle gave before."""

    pairs: int
    full_matrix: int  # what rating every pair of classes once would take
    calls: int  # at most: stored ratings are not asked again
    stored: int
    prompt_tokens: int
    answer_tokens: int
    seconds: float | None
    price: float | None
    measured: bool


def estimate(
    settings: OracleSettings, about: About, rows: int, names: list[str], store: RatingStore, fine: bool = False
) -> Estimate:
    """For ``rows`` forget concepts among ``names`` (inside them when ``fine``); nothing is started and no model is loaded."""
    others = len(names) - (0 if fine else 1)
    per_row = settings.shortlist if 0 < settings.shortlist < len(names) - 1 else others
    pairs = rows * per_row
    orders = 2 if settings.both_orders and not about.symmetric else 1
    calls = pairs * orders * min(settings.phrasings, len(about.prompts))
    prompt, answer, seconds = 0.0, 0.0, None
    experience = store.experience()
    if experience is not None:
        prompt, answer, per_call = experience
        seconds = round(per_call * calls, 1)
    elif not about.symmetric and not about.stand_in:  # a model that reads prompts
        name = max(names, key=len)
        text = prompts.opening(Pair(Concept(name), Concept(name)), prompts.ANSWER_DIGIT)
        text += prompts.closing(Pair(Concept(name), Concept(name)))
        prompt, answer = len(text) / CHARACTERS_PER_TOKEN + 2 * settings.images * settings.image_tokens, 1.0
    price = None
    if settings.price_prompt is not None or settings.price_answer is not None:
        price = calls * (prompt * (settings.price_prompt or 0.0) + answer * (settings.price_answer or 0.0)) / 1e6
    full = len(names) * (len(names) - 1) // 2
    return Estimate(pairs, full, calls, len(store), round(prompt * calls), round(answer * calls), seconds, price,
                    experience is not None)  # fmt: skip
