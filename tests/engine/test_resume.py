"""A fit that was cut off in the middle of an epoch ends as if it had not been, on any number of workers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gloo_workers
import pytest
import resume_workers
import torch
from resume_workers import ASKED, QUICK, SLOW, WORDS, fit, log_of
from torch import Tensor, nn

from megu_dist.models.architectures.transformers import TransformersModel, TransformersSettings

WORLDS = (1, 2)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small are slower on two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def dropping_vit() -> nn.Module:
    """A network with dropout: resumed, it must drop the same units."""
    config = {
        "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "patch_size": 4,
        "hidden_dropout_prob": 0.5,
    }  # fmt: skip
    torch.manual_seed(0)
    settings = TransformersSettings(name="transformers", model_type="vit", num_channels=1, image_size=8, config=config)
    return TransformersModel(settings).build(gloo_workers.LABELS)


@pytest.mark.parametrize("build", [dropping_vit, gloo_workers.network])
@pytest.mark.parametrize("end_after", [1, 7, 9, 14])
def test_one_worker_resumes_bit_by_bit(tmp_path: Path, build: Any, end_after: int) -> None:
    """48 steps an epoch, a log line for two of them, a checkpoint for seven: the 7th ends an epoch, the 14th the fit."""
    words, counts = ["train.batch_size=2", "train.checkpoint_steps=7"], (6, 90)
    whole = fit("ddp", 0, 1, tmp_path / "whole", words=words, model=build(), counts=counts)
    assert whole["resume"] is None
    assert whole["steps"] == 96
    cut = tmp_path / "cut"
    fit("ddp", 0, 1, cut, end_after, words, build(), counts)
    if end_after == 9:  # the dying process wrote on, past its last checkpoint and into the middle of a line
        line = {"epoch": 1, "step": 24, "seconds": 1.0}
        with (cut / "history.jsonl").open("a") as file:
            file.write(json.dumps(line) + '\n{"epoch": 1, "st')
    found = fit("ddp", 0, 1, cut, words=words, model=build(), counts=counts)
    names = {
        1: "epoch-00000-step-0000007",
        7: "epoch-00000",
        9: "epoch-00001-step-0000008",
        14: "epoch-00001-step-0000043",
    }
    assert found["resume"] == names[end_after]
    assert found["told"]["resumed"]["fresh_optimizer"] is None
    assert found["steps"] == 96
    assert found["weights"].keys() == whole["weights"].keys()
    assert all(torch.equal(value, whole["weights"][name]) for name, value in found["weights"].items())
    assert found["log"] == whole["log"]
    assert [line["step"] for line in found["log"]] == 2 * list(range(2, 49, 2))
    assert sum(line["images"] for line in found["log"]) == 2 * 96


def test_a_row_lost_before_the_cut_is_noticed_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = resume_workers.StoredRows
    monkeypatch.setattr(
        resume_workers, "StoredRows", lambda seed, count: whole(seed, count, lost=0 if seed == 1 else -1)
    )
    fit("ddp", 0, 1, tmp_path, end_after=1)
    monkeypatch.setattr(resume_workers, "StoredRows", whole)
    with pytest.raises(RuntimeError, match=r"epoch 0: 1 of 7 forget images were not seen exactly once \(rows \[0\]"):
        fit("ddp", 0, 1, tmp_path)


def begin_and_go_on(root: Path, engines: list[str]) -> dict[str, Any]:
    """``whole[world][engine]``, and ``resumed[world][engine, began]``: fits begun by some number and ended by another."""
    out: dict[str, Any] = {"whole": {}, "resumed": {}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ASKED, ",".join(engines))
        for key, scenario in (("whole", resume_workers.begin), ("resumed", resume_workers.go_on)):
            for world in WORLDS:
                (root / f"{key}-{world}").mkdir()
                out[key][world] = gloo_workers.launch(root / f"{key}-{world}", world, scenario)[0]
    return out


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return begin_and_go_on(tmp_path_factory.mktemp("resume"), QUICK)


@pytest.fixture(scope="module")
def slow_ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return begin_and_go_on(tmp_path_factory.mktemp("resume"), SLOW)


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[k].float() - b[k].float()).abs().max()) for k in a)


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
@pytest.mark.parametrize("began", WORLDS)
@pytest.mark.parametrize("world", WORLDS)
def test_any_number_of_workers_goes_on_from_anothers_checkpoint(
    request: pytest.FixtureRequest, name: str, began: int, world: int
) -> None:
    """Weights, momentum (or Adam's moments) and batch statistics are all taken over, in the middle of an epoch."""
    ends = request.getfixturevalue("ends" if name in QUICK else "slow_ends")
    whole, found = ends["whole"][began][name], ends["resumed"][world][name, began]
    assert found["resume"] == "epoch-00001-step-0000004" + ("-of-2" if began == 2 else "")
    expected = {"epoch": 1, "step": 4, "workers": began, "fresh_optimizer": None}
    assert found["told"]["resumed"] == expected
    assert distance(found["weights"], whole["weights"]) < 2e-5
    assert any("running_mean" in key for key in found["weights"])
    assert [{k: v for k, v in line.items() if "loss" not in k} for line in found["log"]] == [
        {k: v for k, v in line.items() if "loss" not in k} for line in whole["log"]
    ]


def test_unusable_optimiser_state_is_said_aloud_and_weights_are_kept(ends: dict[str, Any]) -> None:
    found, kept = ends["resumed"][1]["damaged"], ends["resumed"][1]["zero2", 2]
    assert "KeyError" in found["told"]["resumed"]["fresh_optimizer"]
    assert 1e-5 < distance(found["weights"], kept["weights"]) < 0.05  # a last step without momentum


def test_logs_do_not_lose_the_steps_between_lines(tmp_path: Path) -> None:
    fit("ddp", 0, 1, tmp_path, end_after=1, words=WORDS)
    assert [line["step"] for line in log_of(tmp_path)] == [1, 2, 3]
