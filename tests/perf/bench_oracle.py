"""A small multimodal model behind Ray Serve against a loop over the same batches in this process."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "oracle"))  # run from here, its helpers are not found

import tiny_vlm
import torch

from megu_dist.config.compose import load
from megu_dist.oracle import serve
from megu_dist.oracle.backends.mllm import MllmOracle, MllmSettings
from megu_dist.oracle.base import Concept, Pair, Rating
from megu_dist.raysession import ray_session

pytestmark = [pytest.mark.perf, pytest.mark.timeout(900)]
BATCH, PAIRS, RUNS = 16, 400, 5
TARGET, LEAST = 0.9, 0.7  # of an idle machine; of one whose two cores have other work as well


def questions(images: int, run: int) -> list[Pair]:
    """A few forget concepts against many classes, one after the other as a fill asks them."""
    shown = [
        Concept(f"class {i}", "", tuple(tiny_vlm.picture((7 * i) % 256, 1000 * run + k) for k in range(images)))
        for i in range(PAIRS // 8)
    ]
    return [Pair(first, second) for first in shown[:8] for second in shown]


def direct(oracle: MllmOracle, pairs: list[Pair]) -> float:
    start = time.perf_counter()
    for place in range(0, len(pairs), BATCH):
        oracle.rate(pairs[place : place + BATCH])
    return len(pairs) / (time.perf_counter() - start)


def through_serve(handle: object, pairs: list[Pair], settings: MllmSettings) -> float:
    got: list[Rating] = []
    start = time.perf_counter()
    serve.rate_all(handle, pairs, settings, lambda _, ratings: got.extend(ratings))
    seconds = time.perf_counter() - start
    assert len(got) == len(pairs)
    return len(pairs) / seconds


@pytest.fixture(scope="module", autouse=True)
def cluster(cache_dir: Path) -> Iterator[None]:
    """A Ray of its own, so that replicas compute with as many threads as this process: one."""
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEGU_THREADS", "1")
        patch.setenv("RAY_worker_niceness", "0")  # else a busy machine would hold back replicas alone
        with ray_session(load(["data=digits", f"data.cache_dir={cache_dir}"]).settings):
            yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("images", [0, 2])
def test_ratings_through_serve(tmp_path: Path, images: int) -> None:
    folder = tiny_vlm.llava(tmp_path, hidden=256, layers=4)
    settings = MllmSettings(name="mllm", path=str(folder), images=images, max_batch_size=BATCH)
    oracle = MllmOracle(settings)
    rates: list[tuple[float, float]] = []
    with serve.served(settings) as handle:
        for run in range(RUNS + 1):
            pairs = questions(images, run)
            found = direct(oracle, pairs), through_serve(handle, pairs, settings)
            if run:  # the first warms both up
                rates.append(found)
    ratios = sorted(served / bare for bare, served in rates)
    bare, served = (median(rate[side] for rate in rates) for side in (0, 1))
    ratio = median(ratios)
    print(f"\n{images} images a concept, batches of {BATCH}, {RUNS} alternating runs of {PAIRS} pairs")
    print(
        f"direct {bare:.1f} ratings/s, through Serve {served:.1f}; ratio {ratio:.2f} "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f}; target {TARGET})"
    )
    assert ratio >= LEAST
