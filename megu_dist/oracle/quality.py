"""Is a row of ratings believable? Entropy, asymmetry, disagreement between wordings, refusals."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class RowQuality:
    """What is known of one row; ``flags`` is empty for a row that can be used."""

    row: str
    source: str  # the oracle that gave the row
    rated: int  # pairs with a rating
    refused: int  # pairs without a usable answer
    spread: float  # highest minus lowest rating
    asymmetry: float | None  # mean |r(a, b) - r(b, a)|; None where one order was asked
    disagreement: float | None  # mean standard deviation over wordings; None for one wording
    entropy: float | None = None  # of T's row, 0 … 1 (1: uniform)
    flags: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def row_quality(row: str, source: str, answers: np.ndarray, max_refused: float, flat: bool) -> RowQuality:
    """``answers`` (pairs, orders, wordings), NaN where there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # means of no value are NaN, as meant
        value = np.nanmean(answers, axis=(1, 2)) if len(answers) else np.zeros(0)
        asymmetry = np.nanmean(np.abs(np.diff(np.nanmean(answers, axis=2), axis=1))) if answers.shape[1] == 2 else None
        disagreement = np.nanmean(np.nanstd(np.nanmean(answers, axis=1), axis=1)) if answers.shape[2] > 1 else None
    have = value[~np.isnan(value)]
    refused = len(value) - len(have)
    spread = float(np.ptp(have)) if len(have) else 0.0
    flags = []
    if len(value) and refused > max_refused * len(value):
        flags.append(f"no usable answer for {refused} of {len(value)} pairs")
    if len(have) > 1 and spread < 1e-6 and not flat:
        flags.append(f"all {len(have)} ratings are equal ({have[0]:.2f})")
    return RowQuality(row, source, len(have), refused, round(spread, 4), _known(asymmetry), _known(disagreement),
                      flags=flags)  # fmt: skip


def entropy(row: np.ndarray) -> float:
    """Of a probability row, divided by that of a uniform one over its non-zero entries."""
    p = row[row > 0]
    return float(-(p * np.log(p)).sum() / np.log(len(p))) if len(p) > 1 else 0.0


def _known(value: Any) -> float | None:
    return None if value is None or np.isnan(value) else round(float(value), 4)
