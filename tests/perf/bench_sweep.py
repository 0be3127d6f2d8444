"""What a sweep's trial costs beyond its compute: `megu sweep` against a loop over the same settings in this process.

Digits, a small network, one runner on either side; the same unlearnings, splits, noise and scores. Run by ``make bench``.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megu_dist.config.compose import load
from megu_dist.workshop import Workshop, here_if_one_worker, tidy

pytestmark = [pytest.mark.perf, pytest.mark.timeout(1800)]
LEAST = 5.0  # seconds of a trial that are not compute, at most
FEW, MANY = 2, 10  # settings; what starts once is in both
ROUNDS = 3


def alphas(count: int) -> list[float]:
    return [round(0.05 * k, 2) for k in range(1, count + 1)]


def test_fixed_cost_of_a_trial(
    digits_words: list[str], digits_model: Path, run_megu: Callable[[list[str]], Any], tmp_path: Path
) -> None:
    words = [*digits_words, f"model.path={digits_model}", "engine=ddp", "train=finetune", "train.epochs=1",
             "forget.classes=[three]", "data.validation_fraction=0.5", "train.precision=fp32"]  # fmt: skip

    def sweep(count: int, name: str) -> float:
        space = f"sweep.space.method.alpha={alphas(count)}".replace(" ", "")
        start = time.monotonic()
        done = run_megu(["sweep", *words, space, "sweep.runners=1", f"run.dir={tmp_path}", f"run.name={name}"])
        assert done.code == 0, done.output
        return time.monotonic() - start

    def bare(count: int, name: str) -> float:
        folder = tmp_path / name
        folder.mkdir()
        shop = Workshop(folder, 4.0)
        start = time.monotonic()
        for number, alpha in enumerate(alphas(count)):
            own = [f"method.alpha={alpha}", "perturb.noise=positive", "evaluate.split=validation"]
            s = load([*words, *own, f"run.dir={folder}", f"run.name={number}", f"oracle.store={tmp_path / 'ratings'}"])
            with here_if_one_worker(s.settings):
                pipeline = shop.pipeline(s.settings, folder / str(number))
                shop.decode(s.settings)
                pipeline.check_request()
                shop.unlearn(pipeline, shop.models(pipeline))
                tidy(folder / str(number))
        return time.monotonic() - start

    per_trial, alone = [], []
    for k in range(ROUNDS):
        per_trial.append((sweep(MANY, f"many{k}") - sweep(FEW, f"few{k}")) / (MANY - FEW))
        alone.append((bare(MANY, f"bare-many{k}") - bare(FEW, f"bare-few{k}")) / (MANY - FEW))
    trial, compute = statistics.median(per_trial), statistics.median(alone)
    print(f"\na trial of a sweep: {trial:.2f} s, of which compute {compute:.2f} s: fixed cost {trial - compute:.2f} s")
    assert trial - compute <= LEAST
