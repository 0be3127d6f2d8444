"""Perturbing labels: q_x(j) ∝ T[y, j] · p(j | x; θ_o)^κ over classes that are neither y nor forgotten (design §2.2).

For a forgotten sub-class, T has a row for the fine concept and the coarse label y is as legal as any other. Where a probe
tells how often an unseen image would be given its label, single images keep it as often, and sub-classes as often after
sharpening by κ (docs/method.md).
"""

from __future__ import annotations

import hashlib

import numpy as np

from megu_dist.data.plan import hash_uniform


def label_distribution(
    log_probs: np.ndarray,
    rows_of_t: np.ndarray,
    labels: np.ndarray | None,
    forgotten: list[int],
    kappa: float,
    keep: np.ndarray | None = None,
) -> np.ndarray:
    """q, (N, C) float64, rows sum to 1.

    ``log_probs`` (N, C) of θ_o, ``rows_of_t`` (N, C) the image's row of T, ``labels`` (N,). Where T gives no weight to
    any allowed class, q falls back to p alone. ``labels`` None: the image's own label is legal, as for a fine class
    within it. ``keep`` (N,): q(y) of each image that is not forgotten with its whole class; the other classes share the
    rest as they would share all of it.
    """
    allowed = np.ones_like(log_probs, bool)
    allowed[:, forgotten] = False
    if labels is not None:
        allowed[np.arange(len(labels)), labels] = False
    with np.errstate(divide="ignore"):
        score = np.log(rows_of_t.astype(np.float64)) + kappa * log_probs
    score = np.where(allowed, score, -np.inf)
    empty = ~np.isfinite(score).any(1)
    score[empty] = np.where(allowed[empty], log_probs[empty], -np.inf)
    weight = np.exp(score - score.max(1, keepdims=True))
    q: np.ndarray = weight / weight.sum(1, keepdims=True)
    if keep is not None and labels is not None:
        own = np.where(np.isin(labels, forgotten), 0, keep)
        q *= 1 - own[:, None]
        q[np.arange(len(labels)), labels] = own
    return q


def sharpened(share: np.ndarray, kappa: float) -> np.ndarray:
    """(N,) of (N,) probabilities p: p^κ / (p^κ + (1 − p)^κ), as κ sharpens those of two classes."""
    own, other = share**kappa, (1 - share) ** kappa
    sharp: np.ndarray = own / (own + other)
    return sharp


def id_seeds(ids: list[str]) -> np.ndarray:
    """One 63-bit number per image id, the same on every machine."""
    return np.array([int.from_bytes(hashlib.blake2b(i.encode(), digest_size=8).digest()) >> 1 for i in ids], np.int64)


def draw_labels(q: np.ndarray, ids: list[str], seed: int, draws: int, policy: str) -> np.ndarray:
    """(N, draws) labels: independent samples of q seeded by image id, or its maximum."""
    if policy == "argmax":
        return np.repeat(q.argmax(1)[:, None], draws, 1)
    cumulative = np.cumsum(q, 1)
    keys = id_seeds(ids)
    out = np.empty((len(ids), draws), np.int64)
    for draw in range(draws):
        u = hash_uniform(seed, draw, keys)[:, None] * cumulative[:, -1:]
        out[:, draw] = (u >= cumulative).sum(1)
    return out
