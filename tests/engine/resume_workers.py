"""Fits that are cut off at a checkpoint and resumed, by the same number of gloo processes or another."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gloo_workers
import torch
from gloo_workers import CPU, StoredRows, engine_of, network
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy

from megu_dist.config.compose import load
from megu_dist.engine import checkpoints
from megu_dist.engine.batch import Batch
from megu_dist.engine.context import Context
from megu_dist.engine.trainable import freeze
from megu_dist.models.preprocess import Preprocess

QUICK = ["ddp", "zero2", "zero3/adamw"]  # one without ZeRO, one with shared optimiser state, one with all shared
SLOW = sorted({*gloo_workers.ENGINES, "zero2/adamw"} - set(QUICK))
ASKED = "MEGU_TEST_ENGINES"  # which of them the processes try, with commas between
WORDS = ["train.batch_size=6", "train.checkpoint_steps=3", "train.lr=0.05"]  # 5 steps an epoch
FORGET, RETAIN = 7, 23


class CutOff(Exception):
    """What stands for the end of the process: nothing of the fit is used after it."""


@dataclass
class Report:
    """Copies each rank's part of a checkpoint into one folder, as Ray Train does; ends the fit after so many."""

    root: Path
    world: int
    end_after: int | None = None
    done: int = 0

    def __call__(self, _: dict[str, Any], folder: Path | None, name: str) -> None:
        assert folder is not None
        shutil.copytree(folder, self.root / "attempt" / name, dirs_exist_ok=True)
        if self.world > 1:
            distributed.barrier()
        self.done += 1
        if self.done == self.end_after:
            raise CutOff


def fit(
    name: str,
    rank: int,
    world: int,
    root: Path,
    end_after: int | None = None,
    words: list[str] = WORDS,
    model: nn.Module | None = None,
    counts: tuple[int, int] = (FORGET, RETAIN),
) -> dict[str, Any]:
    """Weights, facts and log of a fit of two epochs that resumes from the newest checkpoint below ``root``."""
    engine, _, optimizer = name.partition("/")
    settings = load(
        ["train.epochs=2", "train.precision=fp32", f"train.optimizer={optimizer or 'sgd'}", *words]
    ).settings
    root.mkdir(parents=True, exist_ok=True)
    resume = checkpoints.newest(root)
    if world > 1:
        distributed.barrier()
    context = Context(
        settings, engine_of(engine), Preprocess(8, 8, 1, (0.5,), (0.25,)), CPU, rank, world, 0, root / "history.jsonl",
        resume=resume, report=Report(root, world, end_after),
    )  # fmt: skip

    def loss(forget: Tensor, retain: Tensor, batch: Batch) -> tuple[Tensor, Tensor, float]:
        sums = [
            cross_entropy(logits, part.label, reduction="sum") if len(part) else logits.new_zeros(())
            for logits, part in ((forget, batch.forget), (retain, batch.retain))
        ]
        return sums[0], sums[1], 0.5

    try:
        model = network() if model is None else model
        model = freeze(model, settings.train)
        model = context.fit(model, StoredRows(1, counts[0]), StoredRows(2, counts[1]), loss)  # type: ignore[arg-type]
    except CutOff:
        return {"resume": resume and resume.name}
    assert context.result is not None
    return {
        "resume": resume and resume.name,
        "weights": context.final_weights(model),
        "told": context.told,
        "steps": context.result.steps,
        "log": log_of(root),
    }


def log_of(root: Path) -> list[dict[str, Any]]:
    """The log without its times."""
    lines = [json.loads(line) for line in (root / "history.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def place(name: str, what: str) -> Path:
    """A folder that all processes of all worlds share."""
    return Path(os.environ["GLOO_FOLDER"]).parent / f"{name.replace('/', '-')}-{what}"


def begin(rank: int, world: int) -> dict[str, Any]:
    """Undisturbed fits, and fits that end after their fourth checkpoint: in the second epoch, after its fourth step."""
    out = {}
    for name in os.environ[ASKED].split(","):
        out[name] = fit(name, rank, world, place(name, f"whole-{world}"))
        fit(name, rank, world, place(name, f"cut-{world}"), end_after=4)
    return out


def go_on(rank: int, world: int) -> dict[str, Any]:
    """What one and two workers began and did not end, ended by ``world`` workers."""
    out = {}
    names = os.environ[ASKED].split(",")
    for name in names:
        for began in (1, 2):
            root = place(name, f"cut-{began}-by-{world}")
            if rank == 0:
                shutil.copytree(place(name, f"cut-{began}"), root)
            if world > 1:
                distributed.barrier()
            out[name, began] = fit(name, rank, world, root)
    if world == 1 and "zero2" in names:
        out["damaged"] = fit("zero2", rank, world, without_state(place("zero2", "cut-2"), place("zero2", "damaged")))
    return out


def without_state(root: Path, to: Path) -> Path:
    """A copy whose optimiser state is of a kind that nobody knows."""
    shutil.copytree(root, to)
    newest = checkpoints.newest(to)
    assert newest is not None
    for file in newest.rglob("*optim_states.pt"):
        held = torch.load(file, weights_only=False)
        held["optimizer_state_dict"]["base_optimizer_state"] = {"unknown": 0}
        torch.save(held, file)
    for listing in newest.glob("rank-*.json"):
        told = json.loads(listing.read_text())
        told["files"] = {name: (newest / name).stat().st_size for name in told["files"]}
        listing.write_text(json.dumps(told))
    return to
