"""Regrouping of blocks into steps, and reading ahead."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from megu_dist.data import stream
from megu_dist.data.stream import ReadAhead, few, in_steps, task_rows
from megu_dist.raysession import auto_actors


def blocks(*sizes: int) -> Iterator[dict[str, np.ndarray]]:
    start = 0
    for size in sizes:
        rows = np.arange(start, start + size)
        yield {"row": rows, "image": np.repeat(rows[:, None], 2, 1)}
        start += size


@pytest.mark.parametrize("lengths", [(10,), (1,) * 10, (4, 6), (3, 0, 7), (7, 3)])
@pytest.mark.parametrize("sizes", [(10,), (3, 3, 4), (0, 5, 0, 5, 0), (1,) * 10, (2, 2)])
def test_steps_have_the_asked_sizes_and_order(lengths: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    steps = list(in_steps(blocks(*lengths), sizes))
    assert [len(step["row"]) for step in steps] == list(sizes)
    assert np.concatenate([step["row"] for step in steps]).tolist() == list(range(sum(sizes)))
    for step in steps:
        assert step["image"].shape == (len(step["row"]), 2)
        assert np.array_equal(step["image"][:, 0], step["row"])


def test_too_few_rows_are_an_error() -> None:
    with pytest.raises(RuntimeError):  # a StopIteration inside a generator
        list(in_steps(blocks(3), [2, 2]))


def test_read_ahead_keeps_the_order_and_overlaps() -> None:
    started = threading.Event()

    def items() -> Iterator[int]:
        yield 0
        started.set()
        yield from range(1, 20)

    ahead = iter(ReadAhead(items()))
    assert started.wait(5)  # before anything is asked for
    assert next(ahead) == 0
    assert list(ahead) == list(range(1, 20))
    assert list(ReadAhead(iter(()))) == []


def test_read_ahead_stays_within_its_depth() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    ahead = iter(ReadAhead(items(), depth=2))
    assert next(ahead) == 0
    time.sleep(0.3)
    assert len(made) <= 5
    ahead.close()  # type: ignore[attr-defined]


def test_an_error_reaches_the_consumer_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("lost block")

    ahead = iter(ReadAhead(items()))
    assert next(ahead) == 1
    with pytest.raises(KeyError, match="lost block"):
        next(ahead)


def test_a_consumer_that_stops_early_ends_the_thread() -> None:
    def running() -> int:
        return sum(thread.name == "megu-read-ahead" for thread in threading.enumerate())

    before = running()
    ahead = iter(ReadAhead(iter(range(1_000_000))))
    assert next(ahead) == 0
    assert running() == before + 1
    ahead.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 5
    while running() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert running() == before


def test_tasks_hold_more_small_images_than_large_ones() -> None:
    assert task_rows(0) >= task_rows(64) > task_rows(3 * 224 * 224) > task_rows(1 << 30) >= 16


def test_few_images_are_few_bytes() -> None:
    assert few(1_000, 28 * 28, 300)
    assert not few(1_000, 28 * 28, 100_000)  # large files that are made small take long to decode
    assert not few(1_000, 3 * 224 * 224, 300)


@pytest.mark.parametrize("actors", [0, 1])
def test_no_actor_is_this_process(ray_local: None, actors: int) -> None:
    def read(block: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"row": block["row"] + 100}

    class Where:
        def __call__(self, block: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {"row": block["row"], "pid": np.full(len(block["row"]), os.getpid())}

    found = list(stream.blocks(np.arange(10), read, 4, Where, {}, actors))
    assert np.concatenate([block["row"] for block in found]).tolist() == list(range(100, 110))
    assert [len(block["row"]) for block in found] == [4, 4, 2]
    assert (found[0]["pid"][0] == os.getpid()) == (actors == 0)


def test_auto_actors_of_a_local_ray(ray_local: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(stream.LOCAL_CORES, "2")
    assert auto_actors(0, 0.0, few=True) == 0
    assert auto_actors(0, 0.0, few=False) >= 1
    assert auto_actors(3, 0.0, few=True) == 3  # as asked
    assert auto_actors(0, 1.0, few=True) >= 1  # a GPU is an actor's
    monkeypatch.delenv(stream.LOCAL_CORES)
    assert auto_actors(0, 0.0, few=True) >= 1  # the driver of a cluster may be a small machine
