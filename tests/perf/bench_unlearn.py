"""What `megu unlearn` costs beyond its compute, part by part; and two training workers against one. Run by ``make bench``."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.perf, pytest.mark.timeout(3000)]
RUNS = 5
STAGES = ("split", "oracle", "perturb", "finetune", "evaluate")
MOST = 30.0  # seconds


def megu(*words: str) -> float:
    """Seconds of a command in a process of its own, with a Ray of its own."""
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "megu_dist.cli", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return time.monotonic() - start


def test_fixed_cost_of_an_unlearning(
    digits_words: list[str], digits_model: Path, run_small: Callable[[list[str]], Any], tmp_path: Path
) -> None:
    """The whole command against the same stages in this process, which has everything imported."""
    words = ["unlearn", *digits_words, f"model.path={digits_model}", "engine=ddp", "train.epochs=1",
             "train.precision=fp32", "forget.classes=[three]", f"run.dir={tmp_path}"]  # fmt: skip
    parts: dict[str, list[float]] = {name: [] for name in ("total", *STAGES, "start and end")}
    for k in range(RUNS):
        store = f"oracle.store={tmp_path / f'ratings{k}'}"  # the oracle is asked each time
        total = megu(*words, f"run.name=whole{k}", store)
        assert run_small([*words, f"run.name=here{k}", store]).code == 0
        whole, here = (
            json.loads((tmp_path / f"{name}{k}" / "metrics.json").read_text())["seconds"] for name in ("whole", "here")
        )
        extra = {name: whole[name] - (0 if name == "oracle" else here[name]) for name in STAGES}
        extra["start and end"] = total - whole["total"]
        parts["total"].append(sum(extra.values()))
        for name, seconds in extra.items():
            parts[name].append(seconds)
    medians = {name: statistics.median(found) for name, found in parts.items()}
    print("\nfixed cost of megu unlearn: " + ", ".join(f"{name} {value:.1f} s" for name, value in medians.items()))
    assert medians["total"] < 3 * MOST


def test_two_workers_against_one(digits_words: list[str], tmp_path: Path) -> None:
    """Images per second of whole epochs after the first, one thread a worker; the reading of each epoch begins anew."""
    net = ["model.width=16", "model.num_channels=1", "model.image_size=32", "engine=ddp", "train.precision=fp32"]
    words = ["train", *digits_words, *net, "train.epochs=6", "train.batch_size=128", f"run.dir={tmp_path}"]
    rates: dict[int, list[float]] = {1: [], 2: []}
    for k in range(RUNS):
        for workers in rates:
            name = f"{workers}-{k}"
            megu(*words, f"train.num_workers={workers}", "train.threads=1", f"run.name={name}")
            lines = [json.loads(line) for line in (tmp_path / name / "history.jsonl").read_text().splitlines()]
            begun = [line for line in lines if line["epoch"] == 0][-1]["seconds"]  # since the start of the fit
            images = sum(line["images"] for line in lines if line["epoch"] >= 1)
            rates[workers].append(images / (lines[-1]["seconds"] - begun))
    one, two = (statistics.median(found) for found in rates.values())
    ratio = statistics.median(b / a for a, b in zip(*rates.values(), strict=True))
    print(f"\n2 workers: {two:,.0f} images/s, 1 worker: {one:,.0f}, ratio {ratio:.2f}")
    assert ratio > 0.5
