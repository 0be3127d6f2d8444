"""Every method on small in-memory rows, in this process or on several gloo processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn

from megu_dist.config.compose import load
from megu_dist.config.registry import components, lookup
from megu_dist.data import plan
from megu_dist.engine.backends.ddp import DdpEngine, DdpSettings
from megu_dist.engine.batch import Part, Rows
from megu_dist.engine.context import Context
from megu_dist.models.architectures.cifar_resnet import CifarResNet, CifarResNetSettings
from megu_dist.models.preprocess import Preprocess

CPU = torch.device("cpu")
LABELS = ["a", "b", "c", "d"]
FORGOTTEN = (0,)
# Few images: with the recommended settings these would select no weight at all.
WORDS = {name: ["method.alpha=1.0", "method.dampening=0.1"] for name in ("ssd", "lfssd")}
METHODS = sorted(set(components("method")) - {"retrain"})


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    settings = CifarResNetSettings(name="cifar_resnet", width=4, stage_blocks=[1, 1], num_channels=1, image_size=8)
    return CifarResNet(settings).build(LABELS)


@dataclass(frozen=True)
class MemoryRows(Rows):
    """Rows in memory: class k is a gray level with noise, so that there is something to learn."""

    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def steps(self, epoch: int, steps: int, first: int, rank: int, world: int, device: torch.device) -> Iterator[Part]:
        order = self.rows(epoch)
        for step in range(first, steps):
            low, high = plan.bounds(len(order), steps, step)
            yield Part(high - low, self.read(order[plan.rank_positions(len(order), steps, step, rank, world)]))

    def read(self, rows: np.ndarray) -> dict[str, Tensor]:
        if not len(rows):
            return {}
        labels = self.labels[rows]
        noise = np.stack([np.random.default_rng([7, int(row)]).integers(-30, 31, (1, 8, 8)) for row in rows])
        image = (40 + 55 * labels[:, None, None, None] + noise).clip(0, 255).astype(np.uint8)
        small = (noise / 4).astype(np.int8)
        return {
            "row": torch.from_numpy(rows), "label": torch.from_numpy(labels), "image": torch.from_numpy(image),
            "perturbing_label": torch.from_numpy(1 + rows % 3), "noise_pos": torch.from_numpy(small),
            "noise_neg": torch.from_numpy(-small),
        }  # fmt: skip


def rows_of(labels: np.ndarray, shift: int) -> MemoryRows:
    count = len(labels)
    padded = np.concatenate([np.zeros(shift, np.int64), labels])

    def order(epoch: int) -> np.ndarray:
        return shift + np.random.default_rng([3, epoch]).permutation(count)

    asked = shift + np.arange(count)
    return MemoryRows(order, lambda epoch: lambda batch: batch, 64, count, count, asked=asked, labels=padded)


def data() -> tuple[MemoryRows, MemoryRows]:
    """21 forget images of class 0; 40 retained ones of the others."""
    return rows_of(np.zeros(21, np.int64), 100), rows_of(1 + np.arange(40) % 3, 0)


def context(method: str, folder: Path, rank: int, world: int, words: list[str], seed: int = 0) -> Context:
    settings = load(
        [f"method={method}", "train.batch_size=16", "train.epochs=2", "train.lr=0.02", "train.precision=fp32",
         "engine=ddp", *words]
    ).settings  # fmt: skip
    preprocess = Preprocess(8, 8, 1, (0.5,), (0.25,))
    engine = DdpEngine(DdpSettings(name="ddp"))
    history = folder / f"{method}-{world}.jsonl"
    return Context(settings, engine, preprocess, CPU, rank, world, seed, history, forget_classes=FORGOTTEN)


def original(folder: Path) -> dict[str, Tensor]:
    """Weights of a network that has learned the four classes; made once, in one process."""
    path = folder / "original.pt"
    if not path.is_file():
        ctx = context("finetune", folder, 0, 1, ["train.epochs=40", "train.lr=0.1"])
        labels = np.arange(80) % 4
        model = (
            lookup("method", "finetune").target(ctx.settings.method).unlearn(ctx, network(), None, rows_of(labels, 0))
        )
        torch.save(ctx.final_weights(model), path)
    return torch.load(path)


def run(
    method: str, folder: Path, rank: int = 0, world: int = 1, words: list[str] | None = None, seed: int = 0
) -> tuple[dict[str, Tensor] | None, Context]:
    """The weights that the method ends with (rank 0), and its context."""
    ctx = context(method, folder, rank, world, [*WORDS.get(method, []), *(words or [])], seed)
    model = network()
    model.load_state_dict(original(folder))
    torch.manual_seed(seed)
    forget, retain = data()
    unlearned = lookup("method", method).target(ctx.settings.method).unlearn(ctx, model, forget, retain)
    state = ctx.final_weights(unlearned)
    return (None if state is None else {k: v.clone() for k, v in state.items()}), ctx


def fresh(labels: list[int]) -> dict[str, Tensor]:
    """60 images of ``labels`` that no model has seen."""
    wanted = np.resize(np.array(labels, np.int64), 60)
    return rows_of(wanted, 5000).read(5000 + np.arange(60))


def log_probs(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """(N, C) of a network with the weights ``state``."""
    model = network()
    model.load_state_dict(state)
    inputs = Preprocess(8, 8, 1, (0.5,), (0.25,)).normalise(images.float() / 255)
    with torch.no_grad():
        return model.eval()(pixel_values=inputs).logits.log_softmax(1)


def accuracy(state: dict[str, Tensor], labels: list[int]) -> float:
    """On 60 fresh images of ``labels``."""
    part = fresh(labels)
    return float((log_probs(state, part["image"]).argmax(1) == part["label"]).float().mean())


@dataclass
class Worker:
    """One gloo process; picklable."""

    folder: str
    world: int

    def __call__(self, rank: int) -> None:
        torch.set_num_threads(1)
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(self.world)}
        distributed.init_process_group(
            "gloo", init_method=f"file://{self.folder}/rendezvous", rank=rank, world_size=self.world,
            timeout=timedelta(seconds=60),
        )  # fmt: skip
        out: dict[str, Any] = {}
        for method in METHODS:
            try:
                out[method] = run(method, Path(self.folder), rank, self.world)[0]
            except Exception as error:  # the other methods still run; the test of this one fails
                import traceback

                out[method] = f"{error}\n{traceback.format_exc()}"
        if rank == 0:
            torch.save(out, f"{self.folder}/weights.pt")
        distributed.barrier()
        distributed.destroy_process_group()


def on_two_workers(folder: Path) -> dict[str, Any]:
    """Weights by method."""
    original(folder)
    torch.multiprocessing.spawn(Worker(str(folder), 2), nprocs=2)
    return torch.load(folder / "weights.pt")
