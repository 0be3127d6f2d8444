"""The oracle stage: asks the served oracle for the ratings of the forget concepts' rows and writes ``transition.json``."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megu_dist.config.registry import lookup
from megu_dist.config.schema import OracleSettings
from megu_dist.errors import UserError
from megu_dist.oracle import serve, transition
from megu_dist.oracle.base import MAX_RATING, About, Concept, Pair, Rating
from megu_dist.oracle.quality import RowQuality, entropy, row_quality
from megu_dist.oracle.ratings import RatingStore, rating_key
from megu_dist.store import write_json


@dataclass(frozen=True)
class Job:
    """What is to be filled: a row per forget label; ``candidates[i]`` are the classes that row i is rated against."""

    concepts: list[Concept]  # of all C classes
    labels: list[int]
    candidates: list[list[int]]
    tau: float
    exclude_self: bool
    fine: list[Concept] | None = None  # a concept per row, where rows are fine classes and no classes of the model
    gone: tuple[int, ...] = ()  # classes that the model has forgotten before: T has none of them

    def row(self, i: int) -> Concept:
        """The concept that row i is about."""
        return self.concepts[self.labels[i]] if self.fine is None else self.fine[i]


@dataclass
class Spent:
    """What the ratings cost."""

    calls: int = 0
    reused: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    refused: int = 0

    def add(self, other: Spent) -> None:
        """What another oracle was asked in place of this one."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def price(self, settings: OracleSettings) -> float | None:
        """In the currency of the prices; None where no price is given."""
        if settings.price_prompt is None and settings.price_answer is None:
            return None
        prompt = self.prompt_tokens * (settings.price_prompt or 0.0)
        return round((prompt + self.answer_tokens * (settings.price_answer or 0.0)) / 1e6, 6)


def about(settings: OracleSettings) -> About:
    """What the backend says of itself; raises :class:`UserError` for settings that cannot work."""
    found: About = lookup("oracle", settings.name).target.about(settings)
    return found


def questions(job: Job, settings: OracleSettings, about: About) -> list[list[list[Pair]]]:
    """[row][candidate] → the pairs to be averaged, over orders and wordings (orders first)."""
    wordings = range(min(settings.phrasings, len(about.prompts)))
    both = settings.both_orders and not about.symmetric
    out = []
    for i, others in enumerate(job.candidates):
        a = job.row(i)
        row = []
        for j in others:
            b = job.concepts[j]
            row.append([Pair(x, y, w) for x, y in ([(a, b), (b, a)] if both else [(a, b)]) for w in wordings])
        out.append(row)
    return out


def fill(
    settings: OracleSettings, job: Job, store_folder: Path, out: Path, progress: Callable[[int], None]
) -> dict[str, Any]:
    """Rates every (forget concept, candidate) pair that no earlier fill has rated, and writes ``out/transition.json``.

    Raises :class:`UserError` for degenerate rows under ``oracle.on_degenerate=stop``; the ratings stay stored.
    """
    start = time.monotonic()
    known = about(settings)
    answers, spent = ask(settings, job, known, store_folder, progress)
    ratings, quality = _rows(settings, job, known, answers)
    bad = [i for i, row in enumerate(quality) if row.flags]
    if bad and settings.on_degenerate == "stop":
        raise UserError(
            f"the oracle {settings.name!r} gave {len(bad)} of {len(quality)} rows that cannot be used "
            f"({_listed([quality[i] for i in bad])}); its "
            "ratings are kept. Use another oracle, or set oracle.on_degenerate=fallback (rows from oracle.fallback) or keep"
        )
    price = spent.price(settings)
    if bad and settings.on_degenerate == "fallback":
        spent.add(_fall_back(settings, job, store_folder, ratings, quality, bad))
    matrix = transition.from_ratings(
        ratings.copy(), job.labels, job.tau, job.exclude_self, settings.tail_mass, list(job.gone)
    )
    names = [concept.name for concept in job.concepts]
    cost = {"pairs": sum(map(len, job.candidates)), "calls": spent.calls, "reused": spent.reused}
    cost |= {"prompt_tokens": spent.prompt_tokens, "answer_tokens": spent.answer_tokens}
    seconds = round(time.monotonic() - start, 3)
    rows = [row.as_json() | {"entropy": round(entropy(matrix[i]), 4)} for i, row in enumerate(quality)]
    data = {
        "rows": [job.row(i).name for i in range(len(job.labels))],
        "row_labels": job.labels,
        "fine": job.fine is not None,
        "columns": names,
        "ratings": [[None if np.isnan(r) else round(float(r), 6) for r in row] for row in ratings],
        "transition": matrix.tolist(),
        "tau": job.tau,
        "oracle": {"name": settings.name, "id": known.id, "stand_in": known.stand_in},
        "prompt_hash": "+".join(known.prompts[: settings.phrasings]),
        **cost,
        "cost": price,
        "seconds": seconds,
        "quality": rows,
    }
    write_json(out / "transition.json", data)
    info = {
        "name": settings.name,
        "stand_in": known.stand_in,
        **cost,
        "seconds": seconds,
        "cost": price,
    }
    return info | {"flagged_rows": [quality[i].row for i in bad]}


def ask(
    settings: OracleSettings, job: Job, known: About, store_folder: Path, progress: Callable[[int], None]
) -> tuple[list[np.ndarray], Spent]:
    """Answers (candidates, orders, wordings) per row, from the store or from the served oracle; and what it took."""
    store = RatingStore(store_folder, known)
    grid = questions(job, settings, known)
    wanted: dict[str, Pair] = {}
    for row in grid:
        # Pairs of one wording and first concept side by side: they share the beginning of their prompt.
        for pair in sorted(
            (p for pairs in row for p in pairs), key=lambda p: (p.phrasing, p.first.key != row[0][0].first.key)
        ):
            wanted.setdefault(rating_key(known, pair), pair)
    found: dict[str, Rating] = {}
    spent = Spent()

    def unknown(pairs: list[Pair]) -> list[Pair]:
        store.refresh()
        out = []
        for pair in pairs:
            key = rating_key(known, pair)
            rating = store.get(key)
            if rating is None:
                out.append(pair)
            else:
                found[key] = rating
                spent.reused += 1
        return out

    missing = unknown(list(wanted.values()))
    progress(len(found))

    def arrived(pairs: list[Pair], rated: list[Rating]) -> None:
        store.add(zip(pairs, rated, strict=True))
        for pair, rating in zip(pairs, rated, strict=True):
            found[rating_key(known, pair)] = rating
            spent.calls += 1
            spent.prompt_tokens += rating.prompt_tokens
            spent.answer_tokens += rating.answer_tokens
            spent.refused += bool(np.isnan(rating.value))
        progress(len(found))

    if missing:
        with store.place() as place, serve.served(settings) as handle:
            serve.rate_all(handle, _in_turn(missing, place), settings, arrived, unknown)
    orders = 2 if settings.both_orders and not known.symmetric else 1
    values = []
    for row in grid:
        flat = [found[rating_key(known, pair)].value for pairs in row for pair in pairs]
        values.append(np.asarray(flat, np.float64).reshape(len(row), orders, -1))
    return values, spent


def _in_turn(pairs: list[Pair], place: int) -> list[Pair]:
    """Jobs that fill one store at once begin at different ends, or anywhere: what one has asked, the others find."""
    if place == 1:
        return pairs[::-1]
    return random.sample(pairs, len(pairs)) if place else pairs


def _rows(
    settings: OracleSettings, job: Job, known: About, answers: list[np.ndarray]
) -> tuple[np.ndarray, list[RowQuality]]:
    """(R, C) ratings, NaN where there is none, and each row's quality. A concept is wholly like itself."""
    ratings = np.full((len(job.labels), len(job.concepts)), np.nan)
    quality = []
    for i, (label, others, values) in enumerate(zip(job.labels, job.candidates, answers, strict=True)):
        usable = ~np.isnan(values).all(axis=(1, 2))
        ratings[i, np.asarray(others)[usable]] = [np.nanmean(v) for v in values[usable]]
        if job.fine is None:
            ratings[i, label] = MAX_RATING
        quality.append(row_quality(job.row(i).name, settings.name, values, settings.max_refused, known.flat))
    return ratings, quality


def _fall_back(
    settings: OracleSettings,
    job: Job,
    store_folder: Path,
    ratings: np.ndarray,
    quality: list[RowQuality],
    bad: list[int],
) -> Spent:
    """Replaces the rows ``bad`` by those of ``oracle.fallback``, and says so in their quality; what that took."""
    other = lookup("oracle", settings.fallback).settings(name=settings.fallback)  # type: ignore[misc]
    known = about(other)
    labels, candidates = [job.labels[i] for i in bad], [job.candidates[i] for i in bad]
    fine = None if job.fine is None else [job.fine[i] for i in bad]
    part = Job(job.concepts, labels, candidates, job.tau, job.exclude_self, fine)
    answers, spent = ask(other, part, known, store_folder, lambda done: None)
    values, second = _rows(other, part, known, answers)
    still = [row for row in second if row.flags]
    if still:
        raise UserError(
            f"the oracle {settings.name!r} gave rows that cannot be used, and oracle.fallback={settings.fallback} did no "
            f"better ({_listed(still)}): use another, or oracle.on_degenerate=keep"
        )
    for place, i in enumerate(bad):
        ratings[i] = values[place]
        told = [f"{settings.name}: {flag}" for flag in quality[i].flags]
        quality[i] = RowQuality(**second[place].as_json() | {"flags": told})
    return spent


def _listed(rows: list[RowQuality]) -> str:
    return "; ".join(f"{row.row!r}: {', '.join(row.flags)}" for row in rows[:5])
