"""Ray Train: any number of workers ends with the same weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from megu_dist.config.compose import load
from megu_dist.config.registry import lookup
from megu_dist.data.base import Source
from megu_dist.engine.launch import check_workers, fit
from megu_dist.engine.worker import TrainJob
from megu_dist.errors import UserError
from megu_dist.raysession import worker_environment

pytestmark = pytest.mark.usefixtures("ray_local")
COMMON = [
    "data=digits",
    "method=retrain",
    "train.precision=fp32",
    "train.batch_size=64",
    "train.augment=flip",
    "train.lr=0.02",
]
NET = ["model.width=4", "model.stage_blocks=[1]", "model.num_channels=1", "model.image_size=8"]
VIT = [
    "model=transformers", "model.model_type=vit", "model.num_channels=1", "model.image_size=8", "model.mean=[0.5]",
    "model.std=[0.25]", "train.optimizer=adamw",
    "+model.config={hidden_size:16,num_hidden_layers:1,num_attention_heads:2,intermediate_size:16,patch_size:2}",
]  # fmt: skip


CURVE = [*NET, "train.epochs=2"]
Trained = tuple[dict[str, Any], dict[str, np.ndarray], list[dict[str, Any]]]


def run(digits: Source, folder: Path, words: list[str]) -> Trained:
    """Trains on 1,300 digits: what the job returned, the weights, the log."""
    settings = load([*COMMON, *words], ["train=scratch"]).settings
    out = folder / "out"
    out.mkdir(parents=True)
    job = TrainJob(
        settings=settings,
        source=digits,
        class_names=digits.class_names,
        preprocess=lookup("model", settings.model.name).target(settings.model).preprocess(),
        forget_rows=np.arange(1300, digits.num_rows("train")),
        seed=4,
        out=str(out),
        history=str(folder / "checkpoints" / "history.jsonl"),
        model_folder=None,
        perturbed=None,
    )
    lines: list[dict[str, Any]] = []
    result = fit(job, folder / "checkpoints", lines.append)
    history = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    return result, load_file(out / "model" / "model.safetensors"), history


def distance(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    assert a.keys() == b.keys()
    return max(float(np.abs(a[k].astype(float) - b[k]).max()) for k in a)


@pytest.fixture(scope="module")
def one_ddp_worker(ray_local: None, digits: Source, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """What all others are compared with."""
    return run(digits, tmp_path_factory.mktemp("one"), [*CURVE, "engine=ddp", "train.num_workers=1"])


def test_one_and_two_workers_agree(one_ddp_worker: Trained, digits: Source, tmp_path: Path) -> None:
    one, two = one_ddp_worker, run(digits, tmp_path, [*CURVE, "engine=ddp", "train.num_workers=2"])
    assert (one[0]["world_size"], two[0]["world_size"]) == (1, 2)
    assert one[0]["steps"] == two[0]["steps"] == 2 * 21
    assert distance(one[1], two[1]) < 1e-4
    assert len(one[2]) == len(two[2]) > 20
    for a, b in zip(one[2], two[2], strict=True):
        assert a["loss_retain"] == pytest.approx(b["loss_retain"], abs=1e-4)
        assert {k: a[k] for k in ("epoch", "step", "images", "lr", "loss_forget")} == {
            k: b[k] for k in ("epoch", "step", "images", "lr", "loss_forget")
        }
    assert sum(line["images"] for line in one[2]) == 2 * 1300
    assert one[2][-1]["loss"] < one[2][0]["loss"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "workers"),
    [("ddp", 4), *((f"deepspeed engine.zero_stage={stage}", n) for stage in range(4) for n in (1, 2, 4))],
)
def test_curves_of_any_number_of_workers_and_zero_stage(
    engine: str, workers: int, one_ddp_worker: Trained, digits: Source, tmp_path: Path
) -> None:
    """Of a network with batch normalisation, in fp32: each step's loss within 1e-4, and each weight at the end."""
    found = run(digits, tmp_path, [*CURVE, *f"engine={engine}".split(), f"train.num_workers={workers}"])
    assert found[0]["world_size"] == workers
    assert distance(found[1], one_ddp_worker[1]) < 1e-4
    losses = [[line["loss_retain"] for line in curve] for curve in (found[2], one_ddp_worker[2])]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_a_transformer_on_two_deepspeed_workers(digits: Source, tmp_path: Path) -> None:
    words = [*VIT, "engine=deepspeed", "engine.zero_stage=2", "train.epochs=4", "train.num_workers=2", "train.lr=0.01"]
    result, weights, history = run(digits, tmp_path, words)
    assert result["world_size"] == 2
    assert weights["classifier.weight"].shape == (10, 16)
    assert all(np.isfinite(value).all() for value in weights.values())
    losses = [line["loss"] for line in history]
    assert np.mean(losses[-8:]) < np.mean(losses[:8])


def test_one_worker_ends_what_two_began(digits: Source, tmp_path: Path) -> None:
    """The newest checkpoint is one of two workers, in the middle of an epoch; a part of it that is cut off is passed over."""
    words = [*NET, "engine=ddp", "train.epochs=2", "train.checkpoint_steps=8"]
    whole = run(digits, tmp_path, [*words, "train.num_workers=2"])
    root = tmp_path / "checkpoints"
    kept = sorted(path.name for path in root.glob("*/epoch-*"))
    assert kept == ["epoch-00001-of-2", "epoch-00001-step-0000019-of-2"]
    (next(root.glob("*/epoch-00001-of-2")) / "state.pt").unlink()
    shutil.rmtree(tmp_path / "out")
    again = run(digits, tmp_path, [*words, "train.num_workers=1"])
    assert again[0]["world_size"] == 1
    assert again[0]["resumed"] == {"epoch": 1, "step": 19, "workers": 2, "fresh_optimizer": None}
    assert distance(whole[1], again[1]) < 1e-4
    assert [(line["epoch"], line["step"], line["images"]) for line in whole[2]] == [
        (line["epoch"], line["step"], line["images"]) for line in again[2]
    ]
    for a, b in zip(whole[2], again[2], strict=True):
        assert a["loss_retain"] == pytest.approx(b["loss_retain"], abs=1e-4)


def test_fewer_workers_start_where_no_more_can_be_placed(digits: Source, tmp_path: Path) -> None:
    """Three are asked for, and two can be had. They take every CPU, and the tasks that read run all the same."""
    import ray

    cpus = int(ray.cluster_resources()["CPU"] // 2)
    words = [*NET, "engine=ddp", "train.epochs=1", f"train.num_cpus={cpus}", "train.num_workers=3"]
    with pytest.raises(UserError, match=r"train\.num_workers=3 needs"):
        check_workers(load(words).settings.train)
    elastic = [*words, "train.min_workers=1"]
    assert check_workers(load(elastic).settings.train) == (1, 3)
    result, weights, history = run(digits, tmp_path, elastic)
    assert result["world_size"] == 2
    assert history[-1]["step"] == history[-1]["steps"] == 21
    assert all(np.isfinite(value).all() for value in weights.values())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train.num_workers=999"], r"train\.num_workers=999 needs 999 CPUs"),
        (["train.num_workers=999", "train.min_workers=998"], r"train\.min_workers=998 needs 998 CPUs"),
        (["train.use_gpu=true"], r"1 GPUs.*train\.use_gpu=false"),
        (
            ["train.num_cpus=8"],
            r"train\.num_workers=1 with train\.num_cpus=8 leaves 0 of the cluster's 8 CPUs to the tasks",
        ),
        (["train.num_workers=15", "train.num_cpus=0.5"], r"leaves 0\.5 of .* which need 1; set one of the two lower"),
    ],
)
def test_groups_that_could_never_train_are_refused(words: list[str], told: str) -> None:
    import ray

    assert ray.cluster_resources()["CPU"] == 8
    with pytest.raises(UserError, match=told):
        check_workers(load(["data=digits", "train.batch_size=999", *words]).settings.train)
    assert check_workers(load(["data=digits", "train.num_workers=7"]).settings.train) == 7


def test_processes_keep_few_malloc_arenas_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def arenas() -> str:
        words = (
            Path("/proc/self/environ").read_text().split("\0")
        )  # what the process was started with, when malloc reads it
        return next(word for word in words if word.startswith("MALLOC_ARENA_MAX"))

    assert ray.get(ray.remote(arenas).remote()) == "MALLOC_ARENA_MAX=2"
    monkeypatch.setenv("MALLOC_ARENA_MAX", "7")
    assert worker_environment()["MALLOC_ARENA_MAX"] == "7"
