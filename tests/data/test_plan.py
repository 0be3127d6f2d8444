"""Which rows make up which step, on any number of workers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from megu_dist.data import plan

PIECE = 50


def locality(rows: np.ndarray) -> np.ndarray:
    """Row groups of 50 rows."""
    return rows // PIECE


@pytest.mark.parametrize(("count", "window"), [(1, 64), (100, 100), (1000, 64), (4001, 800), (90, 16)])
def test_an_epoch_is_a_seeded_permutation(count: int, window: int) -> None:
    rows = np.arange(count) * 3 + 1
    order = plan.epoch_order(rows, 7, 2, window, locality)
    assert np.array_equal(np.sort(order), rows)
    assert np.array_equal(order, plan.epoch_order(rows, 7, 2, window, locality))
    if count > 1:
        assert not np.array_equal(order, plan.epoch_order(rows, 7, 3, window, locality))
        assert not np.array_equal(order, plan.epoch_order(rows, 8, 2, window, locality))
    assert np.array_equal(rows, np.arange(count) * 3 + 1)  # the argument is left alone


def test_rows_stay_near_their_piece_beyond_the_window() -> None:
    rows = np.arange(8000)
    window = 8 * 2 * PIECE  # two pieces' worth per run
    order = plan.epoch_order(rows, 0, 0, window, locality)
    for shard in range(plan.SHARDS):
        run = order[shard :: plan.SHARDS]
        assert np.array_equal(np.sort(run), np.arange(shard * 1000, (shard + 1) * 1000))
        for start in range(0, len(run), 2 * PIECE):
            assert len(np.unique(locality(run[start : start + 2 * PIECE]))) <= 3
    within = plan.epoch_order(rows, 0, 0, len(rows), locality)
    assert len(np.unique(locality(within[: 2 * PIECE]))) > 30  # the window holds everything: fully shuffled


def test_pieces_come_in_another_order_each_epoch() -> None:
    first = [
        locality(plan.epoch_order(np.arange(8000), 0, epoch, 8 * PIECE, locality)[:: plan.SHARDS])[::PIECE]
        for epoch in (0, 1)
    ]
    assert not np.array_equal(*first)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize(("count", "batch"), [(100, 8), (97, 16), (3, 8), (1, 1), (10, 100)])
def test_workers_share_each_step_and_drop_nothing(count: int, batch: int, world: int) -> None:
    steps = plan.num_steps(count, batch)
    seen = []
    sizes = []
    for step in range(steps):
        low, high = plan.bounds(count, steps, step)
        shares = [plan.rank_positions(count, steps, step, rank, world) for rank in range(world)]
        assert sorted(np.concatenate(shares).tolist()) == list(range(low, high))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        seen += list(range(low, high))
        sizes.append(high - low)
    assert seen == list(range(count))
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= batch


def test_steps_of_a_set_smaller_than_their_number() -> None:
    sizes = [high - low for low, high in (plan.bounds(3, 10, step) for step in range(10))]
    assert sum(sizes) == 3
    assert set(sizes) == {0, 1}


def test_hash_uniform_is_uniform_and_pure() -> None:
    rows = np.arange(100_000)
    numbers = plan.hash_uniform(5, 11, rows)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = np.histogram(numbers, 100, (0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 170  # χ² with 99 degrees of freedom: p ≈ 10⁻⁵
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.02
    assert np.array_equal(numbers[::-1][:10], plan.hash_uniform(5, 11, rows[::-1][:10]))
    for keys in ((5, 12, rows), (6, 11, rows), (11, 5, rows)):
        assert abs(np.corrcoef(numbers, plan.hash_uniform(*keys))[0, 1]) < 0.02


def test_complement_and_sample() -> None:
    assert plan.complement(6, np.array([4, 1])).tolist() == [0, 2, 3, 5]
    assert plan.complement(3, np.array([], int)).tolist() == [0, 1, 2]
    rows = np.arange(10, 60)
    for size in (None, 50, 99):
        assert plan.sample(rows, size, 0, 0) is rows
    drawn = [plan.sample(rows, 20, seed, epoch) for seed, epoch in itertools.product((0, 1), (0, 1))]
    for one in drawn:
        assert len(set(one.tolist())) == 20
        assert set(one.tolist()) <= set(rows.tolist())
        assert np.array_equal(one, np.sort(one))
    assert len({tuple(one.tolist()) for one in drawn}) == 4
    assert np.array_equal(drawn[0], plan.sample(rows, 20, 0, 0))
