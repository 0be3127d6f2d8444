"""Every engine on two workers trains as one process does, and continues from its checkpoints."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from gloo_workers import CPU, CUT, ENGINES, network, set_up
from torch import nn

from megu_dist.config.schema import TrainSettings
from megu_dist.engine.base import autocast, make_optimizer, resolve_precision, set_threads


def results(ranks: list[dict[str, Any]], name: str) -> dict[str, Any]:
    for rank in ranks:
        assert "error" not in rank[name], rank[name]["error"]
    return ranks[0][name]


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[k].float() - b[k].float()).abs().max()) for k in a)


@pytest.mark.parametrize("name", ENGINES)
def test_two_ranks_train_as_one_process_does(
    name: str, two_ranks: list[dict[str, Any]], one_process: dict[str, Any]
) -> None:
    found = results(two_ranks, name)
    start = network().state_dict()
    assert distance(one_process["ddp"]["trained"], start) > 0.01  # it moved
    for key in ("trained", "continued", "clipped"):
        assert distance(found[key], one_process["ddp"][key]) < 1e-5
    assert distance(one_process["ddp"]["clipped"], start) > 1e-4


@pytest.mark.parametrize("name", ENGINES)
def test_a_checkpoint_continues_where_it_was(name: str, two_ranks: list[dict[str, Any]]) -> None:
    found = results(two_ranks, name)
    assert distance(found["resumed"], found["continued"]) < 1e-6
    assert found["files"]


@pytest.mark.parametrize("name", ENGINES)
def test_weights_are_whole_on_rank_0_only(name: str, two_ranks: list[dict[str, Any]]) -> None:
    found = results(two_ranks, name)["trained"]
    expected = network().state_dict()
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in expected.items()}
    assert all(value.device == CPU for value in found.values())
    assert two_ranks[1][name]["trained"] is None


@pytest.mark.parametrize("name", CUT)
def test_a_step_in_several_passes_is_the_same_step(
    name: str, two_ranks: list[dict[str, Any]], one_process: dict[str, Any]
) -> None:
    """Three passes on each of two workers, some of them without an image, against one pass in one process."""
    assert distance(one_process["cut"], network().state_dict()) > 0.01
    assert distance(two_ranks[0]["cut"][name], one_process["cut"]) < 1e-5


def test_a_missing_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        set_up("ddp", 0, 1).load(tmp_path)


def test_deepspeed_builds_nothing_and_waits_for_no_lock(tmp_path: Path) -> None:
    """A build that was killed leaves a lock; DeepSpeed would wait on it for ever."""
    for root in (tmp_path, tmp_path / "py311_cpu", tmp_path / "py312_cpu"):
        (root / "deepspeed_shm_comm").mkdir(parents=True)
        (root / "deepspeed_shm_comm" / "lock").touch()
    before = sorted(tmp_path.rglob("*"))
    folder = Path(__file__).parent
    code = "import gloo_workers as g; e = g.set_up('zero1', 0, 1); g.train(e, 0, 1, 0, 1); print('trained')"
    env = {
        "TORCH_EXTENSIONS_DIR": str(tmp_path), "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1",
        "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29731",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=os.environ | env, timeout=120, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("trained")
    assert sorted(tmp_path.rglob("*")) == before


def test_deepspeed_still_looks_its_operators_up_where_we_empty_them(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib
    import inspect

    import deepspeed.ops

    from megu_dist.engine.backends.deepspeed import disable_compiled_ops

    backend = importlib.import_module("deepspeed.comm.torch")
    monkeypatch.setitem(vars(deepspeed.ops), "__compatible_ops__", {"something": True})
    disable_compiled_ops()
    assert deepspeed.ops.__compatible_ops__ == {}
    assert "deepspeed.ops.__compatible_ops__.get(" in inspect.getsource(backend.build_shm_op)
    assert backend.build_shm_op() is None


def test_biases_and_norms_are_not_decayed() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Conv2d(1, 1, 3, bias=False))
    model[1].weight.requires_grad_(False)
    for kind, made in (("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)):
        optimizer = make_optimizer(model, TrainSettings(optimizer=kind, weight_decay=0.25, lr=0.5))
        assert type(optimizer) is made
        decayed, plain = optimizer.param_groups
        assert [p.shape for p in decayed["params"]] == [(4, 3), (1, 1, 3, 3)]
        assert [p.shape for p in plain["params"]] == [(4,), (4,)]
        assert (decayed["weight_decay"], plain["weight_decay"]) == (0.25, 0.0)
    assert len(make_optimizer(nn.Linear(2, 2, bias=False), TrainSettings()).param_groups) == 1


def test_precision() -> None:
    assert resolve_precision("fp32", CPU) == "fp32"
    assert resolve_precision("bf16", CPU) == "bf16"
    assert resolve_precision("auto", CPU) in ("fp32", "bf16")
    for precision, kind in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        with autocast(precision, CPU):
            assert nn.Linear(2, 2)(torch.rand(1, 2)).dtype == kind


def test_threads_are_shared_among_the_workers_of_a_node() -> None:
    before = torch.get_num_threads()
    try:
        cores = len(os.sched_getaffinity(0))
        assert set_threads(0, 1) == cores
        assert set_threads(0, 10 * cores) == 1
        assert set_threads(3, 2) == 3 == torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
