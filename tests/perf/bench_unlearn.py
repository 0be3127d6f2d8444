"""What `megu unlearn` costs beyond its compute, part by part; and two training workers against one. Run by ``make bench``."""

from __future__ import annotations

import io
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

pytestmark = [pytest.mark.perf, pytest.mark.timeout(3000)]
RUNS = 5
STAGES = ("split", "oracle", "perturb", "finetune", "evaluate")
MOST = 30.0  # seconds
IMAGES = 12_000


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


def images(folder: Path) -> None:
    """A training set of noise: what is learnt does not matter here."""
    rng = np.random.default_rng(0)

    def png() -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(buffer, "PNG")
        return buffer.getvalue()

    table = pa.table({"image": [png() for _ in range(IMAGES)], "label": np.arange(IMAGES) % 10})
    pq.write_table(table, folder / "train.parquet", row_group_size=1000)
    pq.write_table(table.slice(0, 100), folder / "test.parquet")


BACKBONES = {
    "ResNet-18 width 16, 32 px": ["model=cifar_resnet", "model.width=16", "train.batch_size=256"],
    "the same, local statistics": [
        "model=cifar_resnet",
        "model.width=16",
        "train.batch_size=256",
        "train.batch_norm=local",
    ],
    "ViT-S/16, 224 px": [
        "model=transformers",
        "model.model_type=vit",
        "model.config={hidden_size:384,num_hidden_layers:12,num_attention_heads:6,intermediate_size:1536}",
        "train.retain_per_epoch=96",
        "train.batch_size=32",
    ],
}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_two_workers_against_one(backbone: str, tmp_path: Path) -> None:
    """Images per second of a second epoch without its first twentieth; one thread a worker."""
    images(tmp_path)
    words = ["train", "data=parquet", f"data.path={tmp_path}", "engine=ddp", "train.epochs=2", "train.threads=1",
             f"run.dir={tmp_path}", *BACKBONES[backbone]]  # fmt: skip
    rates: dict[int, list[float]] = {1: [], 2: []}
    for k in range(RUNS):
        for workers in rates:
            name = f"{workers}-{k}"
            megu(*words, f"train.num_workers={workers}", f"run.name={name}")
            lines = [json.loads(line) for line in (tmp_path / name / "history.jsonl").read_text().splitlines()]
            first, *rest = [line for line in lines if line["epoch"] == 1]
            rates[workers].append(sum(line["images"] for line in rest) / (rest[-1]["seconds"] - first["seconds"]))
    one, two = (statistics.median(found) for found in rates.values())
    ratio = statistics.median(b / a for a, b in zip(*rates.values(), strict=True))
    print(f"\n{backbone}, 2 workers: {two:,.0f} images/s, 1 worker: {one:,.0f}, ratio {ratio:.2f}")
    assert ratio > 0.5
