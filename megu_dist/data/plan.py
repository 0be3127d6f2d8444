"""Which rows make up which training step: pure functions of seeds and counts, the same for any number of workers.

An epoch is one array of row numbers, cut into steps of nearly equal size; worker ``rank`` of ``world`` takes every
``world``-th position. So the global batch of a step never depends on ``world``, no row is dropped, and a run can be
continued at any step.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

CHUNK = 1 << 16  # rows handled at a time where temporaries would be many times as large as what is kept
SHARDS = 8  # runs of neighbouring rows that are read side by side; 1, 2, 4 or 8 workers then read disjoint runs


def complement(count: int, rows: np.ndarray) -> np.ndarray:
    """Row numbers 0 … count-1 that are not in ``rows``, ascending; int32 where they fit, as there may be millions."""
    keep = np.ones(count, bool)
    keep[rows] = False
    parts = [np.flatnonzero(keep[start : start + CHUNK]) + start for start in range(0, count, CHUNK)]
    return np.concatenate([part.astype(np.int32 if count < 1 << 31 else np.int64) for part in parts] or [rows[:0]])


def sample(rows: np.ndarray, size: int | None, seed: int, epoch: int) -> np.ndarray:
    """``size`` of ``rows`` without replacement, ascending; all of them when ``size`` is None or too large."""
    if size is None or size >= len(rows):
        return rows
    return np.sort(np.random.default_rng([seed, epoch, 1]).choice(rows, size, replace=False))


def epoch_order(
    rows: np.ndarray, seed: int, epoch: int, window: int, locality: Callable[[np.ndarray], np.ndarray] | None = None
) -> np.ndarray:
    """A seeded order of ``rows`` (ascending): fully shuffled when they fit the window, else shuffled near storage order.

    Beyond the window, rows are cut into :data:`SHARDS` runs; within each, pieces (row groups) come in random order and
    rows are shuffled among ``window / SHARDS`` neighbours; position p takes from run p mod SHARDS. Each run then reads
    each row group about once, however large the data set.
    """
    rng = np.random.default_rng([seed, epoch, 2])
    if len(rows) <= window or locality is None:
        return rng.permutation(rows)
    reach = max(1, window // SHARDS)
    order = np.empty_like(rows)
    for shard, run in enumerate(np.array_split(rows, SHARDS)):
        piece = locality(run)
        pieces = np.unique(piece)
        rank_of = rng.permutation(len(pieces))[np.searchsorted(pieces, piece)]
        run = run[np.argsort(rank_of, kind="stable")]
        for start in range(0, len(run), reach):
            run[start : start + reach] = rng.permutation(run[start : start + reach])
        order[shard::SHARDS] = run
    return order


def num_steps(count: int, batch_size: int) -> int:
    """Steps per epoch: the last batch is not short, all are within one row of each other."""
    return max(1, -(-count // batch_size))


def bounds(count: int, steps: int, step: int) -> tuple[int, int]:
    """Positions [lo, hi) of the epoch that make up ``step``."""
    return count * step // steps, count * (step + 1) // steps


def rank_positions(count: int, steps: int, step: int, rank: int, world: int) -> np.ndarray:
    """Positions of ``step`` that worker ``rank`` handles."""
    low, high = bounds(count, steps, step)
    return np.arange(low + (rank - low) % world, high, world)


def hash_uniform(*keys: int | np.ndarray) -> np.ndarray:
    """Uniform numbers in [0, 1) from integer keys (splitmix64 finaliser): per-row randomness without a generator each."""
    state = np.zeros(1, np.uint64)
    with np.errstate(over="ignore"):
        for key in keys:
            state = state + np.asarray(key).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return (state >> np.uint64(11)).astype(np.float64) / float(1 << 53)
