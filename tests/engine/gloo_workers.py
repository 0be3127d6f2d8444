"""Two gloo processes that run every collective scenario once; the tests look at what they saved."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy

from megu_dist.config.compose import load
from megu_dist.config.schema import TrainSettings
from megu_dist.data import plan
from megu_dist.engine import batch_norm
from megu_dist.engine.backends.ddp import DdpEngine, DdpSettings
from megu_dist.engine.backends.deepspeed import DeepSpeedEngine, DeepSpeedSettings
from megu_dist.engine.batch import Batch, Part
from megu_dist.engine.context import Context
from megu_dist.models.architectures.cifar_resnet import CifarResNet, CifarResNetSettings
from megu_dist.models.preprocess import Preprocess

CPU = torch.device("cpu")
WORLD = 2
BATCH = 7  # uneven on two workers
STEPS, MORE = 3, 2
LABELS = ["a", "b", "c"]
ENGINES = ["ddp", "zero0", "zero1", "zero2", "zero3", "zero2+optimizer", "zero3+parameters"]
CUT = ["ddp", "zero0", "zero2", "zero3"]  # engines whose steps are also taken in several passes


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    settings = CifarResNetSettings(name="cifar_resnet", width=4, stage_blocks=[1, 1], num_channels=1, image_size=8)
    return CifarResNet(settings).build(LABELS)


def batches(first: int, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    for step in range(first, first + count):
        generator = torch.Generator().manual_seed(step)
        yield torch.rand(BATCH, 1, 8, 8, generator=generator), torch.randint(0, 3, (BATCH,), generator=generator)


def settings(clip: float = 0.0) -> TrainSettings:
    return TrainSettings(lr=0.1, precision="fp32", clip_grad_norm=clip)


def engine_of(name: str) -> Any:
    """``ddp``, ``zero2``, ``zero3+parameters`` (offloaded)."""
    if name == "ddp":
        return DdpEngine(DdpSettings(name="ddp"))
    stage, _, offload = name.partition("+")
    return DeepSpeedEngine(DeepSpeedSettings(name="deepspeed", zero_stage=int(stage[-1]), offload=offload or "none"))


def set_up(name: str, rank: int, world: int, seed: int = 0, clip: float = 0.0) -> Any:
    model = batch_norm.apply(network(seed).train(), "sync", world, CPU)
    engine = engine_of(name)
    engine.setup(model, settings(clip), CPU)
    return engine


def train(engine: Any, first: int, count: int, rank: int, world: int) -> None:
    for step, (images, labels) in enumerate(batches(first, count), first):
        logits = engine.forward(images[rank::world])
        loss = cross_entropy(logits, labels[rank::world], reduction="sum") / BATCH
        engine.step(loss * world, 0.1 / (1 + step))


def cut(rank: int, world: int, name: str = "ddp", passes: int = 3) -> dict[str, Tensor] | None:
    """Steps taken in several passes, in a network without batch statistics (those would be a pass's own)."""
    engine = engine_of(name)
    torch.manual_seed(3)
    model = batch_norm.apply(network().train(), "frozen", world, CPU)
    engine.setup(model, settings(), CPU, passes)
    for images, labels in batches(0, STEPS):
        part = Part(BATCH, {"image": images[rank::world], "label": labels[rank::world]})
        for k, piece in enumerate(Batch(Part(0), part).cut(passes)):
            last = k + 1 == passes
            logits = engine.forward(piece.retain.image if len(piece.retain) else images[:0], last)
            loss = cross_entropy(logits, piece.retain.label, reduction="sum") / BATCH if len(logits) else logits.sum()
            engine.step(loss * world, 0.1, last)
    return whole(engine)


def normalised(rank: int, world: int, layer: nn.Module, shape: tuple[int, ...], last: bool) -> dict[str, Tensor]:
    """One batch-norm layer's output, gradients and statistics on this rank's share of a joint batch.

    ``last``: images lie channels-last in memory, as those of a fit do.
    """
    generator = torch.Generator().manual_seed(9)
    joint = torch.randn(shape, generator=generator) * 3 + 5
    towards = torch.randn(shape, generator=generator)
    torch.manual_seed(1)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    batch_norm.apply(layer, "sync", world, CPU)
    x = joint[rank::world].clone()
    x = (x.contiguous(memory_format=torch.channels_last) if last else x).requires_grad_(True)
    out = layer(x)
    (out * towards[rank::world]).sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in layer.named_parameters()}
    if world > 1:
        for gradient in gradients.values():
            distributed.all_reduce(gradient)
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    with torch.no_grad():
        evaluated = layer.eval()(joint[:2])
    return (
        {"out": out.detach(), "x_grad": x.grad, "eval": evaluated}
        | gradients
        | {f"state.{k}": v for k, v in state.items()}
    )


LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "2d": (lambda: nn.BatchNorm2d(3), (BATCH, 3, 4, 4)),
    "1d": (lambda: nn.BatchNorm1d(3), (BATCH, 3)),
    "one": (lambda: nn.BatchNorm2d(3), (3, 3, 2, 2)),  # two images here, one there
    "mean": (lambda: nn.BatchNorm2d(3, momentum=None), (BATCH, 3, 4, 4)),
    "channels last": (lambda: nn.BatchNorm2d(3), (BATCH, 3, 4, 4)),
}


def run_all(rank: int, world: int) -> dict[str, Any]:
    out: dict[str, Any] = {
        "bn": {name: normalised(rank, world, make(), shape, "last" in name) for name, (make, shape) in LAYERS.items()}
    }
    for name in ENGINES:
        try:
            out[name] = run_engine(name, rank, world)
        except Exception as error:  # the other engines still run; the test of this one fails
            import traceback

            out[name] = {"error": f"{error}\n{traceback.format_exc()}"}
    out["cut"] = {name: cut(rank, world, name) for name in CUT}
    return out


def whole(engine: Any) -> dict[str, Tensor] | None:
    """The engine's weights as they are now."""
    state = engine.state_dict()
    return None if state is None else {name: value.clone() for name, value in state.items()}


def run_engine(name: str, rank: int, world: int) -> dict[str, Any]:
    """Trains, saves, goes on; loads into a new engine and goes on from there."""
    engine = set_up(name, rank, world)
    train(engine, 0, STEPS, rank, world)
    trained = whole(engine)
    shared = Path(os.environ["GLOO_FOLDER"]) / name
    shared.mkdir(exist_ok=True)
    engine.save(shared)
    if distributed.is_initialized():
        distributed.barrier()
    train(engine, STEPS, MORE, rank, world)
    continued = whole(engine)
    again = set_up(name, rank, world, seed=5)
    again.load(shared)
    train(again, STEPS, MORE, rank, world)
    clipped = set_up(name, rank, world, clip=0.05)
    train(clipped, 0, 1, rank, world)
    return {
        "trained": trained,
        "continued": continued,
        "resumed": whole(again),
        "clipped": whole(clipped),
        "files": sorted(str(p.relative_to(shared)) for p in shared.rglob("*") if p.is_file()),
    }


@dataclass
class StoredRows:
    """Rows in memory instead of a Ray Data stream."""

    seed: int
    count: int
    lost: int = -1  # a row that never arrives

    @property
    def asked(self) -> np.ndarray:
        return np.arange(self.count)

    def rows(self, epoch: int) -> np.ndarray:
        return self.asked

    def steps(self, epoch: int, steps: int, first: int, rank: int, world: int, device: torch.device) -> Iterator[Part]:
        generator = torch.Generator().manual_seed(self.seed)
        images = torch.randint(0, 256, (self.count, 1, 8, 8), generator=generator, dtype=torch.uint8)
        labels = torch.randint(0, 3, (self.count,), generator=generator)
        for step in range(first, steps):
            low, high = plan.bounds(self.count, steps, step)
            mine = plan.rank_positions(self.count, steps, step, rank, world)
            mine = mine[mine != self.lost]
            yield Part(high - low, {"row": torch.from_numpy(mine), "image": images[mine], "label": labels[mine]})


def run_sparse(rank: int, world: int) -> dict[str, Any]:
    """A fit whose steps hold one forget and one retained image: on two workers, one of them has nothing to do."""
    return fitted(rank, world, StoredRows(1, 4), StoredRows(2, 4))


def run_one_forget_row(rank: int, world: int) -> dict[str, Any]:
    """One forget row for all workers; then one that two epochs are to hold and that never comes."""
    out = fitted(rank, world, StoredRows(1, 1), StoredRows(2, 9))
    try:
        fitted(rank, world, StoredRows(1, 3, lost=2), StoredRows(2, 9))
    except RuntimeError as error:
        out["error"] = str(error)
    return out


def fitted(rank: int, world: int, forget: StoredRows, retain: StoredRows) -> dict[str, Any]:
    """The weights after one epoch of batches of two."""
    settings = load(["train.batch_size=2", "train.epochs=1", "train.precision=fp32", "engine=ddp"]).settings
    folder = Path(os.environ["GLOO_FOLDER"])
    preprocess = Preprocess(8, 8, 1, (0.5,), (0.25,))
    context = Context(settings, engine_of("ddp"), preprocess, CPU, rank, world, 0, folder / f"history-{world}.jsonl")

    def loss(forget: Tensor, retain: Tensor, batch: Batch) -> tuple[Tensor, Tensor, float]:
        sums = [
            cross_entropy(logits, part.label, reduction="sum") if len(part) else logits.new_zeros(())
            for logits, part in ((forget, batch.forget), (retain, batch.retain))
        ]
        return sums[0], sums[1], 0.5

    context.fit(network(), forget, retain, loss)  # type: ignore[arg-type]
    return {"weights": whole(context.engine)}


@dataclass
class Worker:
    """What a process runs; picklable."""

    folder: str
    world: int
    scenario: str | Callable[[int, int], Any] = "run_all"  # a function of this module, or of another

    def __call__(self, rank: int) -> None:
        torch.set_num_threads(1)
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(self.world),
            "LOCAL_WORLD_SIZE": str(self.world), "GLOO_FOLDER": self.folder,
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29999",
        }  # fmt: skip
        distributed.init_process_group(
            "gloo",
            init_method=f"file://{self.folder}/rendezvous",
            rank=rank,
            world_size=self.world,
            timeout=timedelta(seconds=60),
        )
        run = globals()[self.scenario] if isinstance(self.scenario, str) else self.scenario
        torch.save(run(rank, self.world), f"{self.folder}/rank-{rank}.pt")
        distributed.barrier()
        distributed.destroy_process_group()


def launch(
    folder: Path, world: int = WORLD, scenario: str | Callable[[int, int], Any] = "run_all"
) -> list[dict[str, Any]]:
    """What each rank saved."""
    torch.multiprocessing.spawn(Worker(str(folder), world, scenario), nprocs=world)
    return [torch.load(folder / f"rank-{rank}.pt") for rank in range(world)]


def alone() -> dict[str, Any]:
    """The same in this process: the reference."""
    os.environ["GLOO_FOLDER"] = tempfile.mkdtemp(prefix="megu-test-")
    bn = {name: normalised(0, 1, make(), shape, "last" in name) for name, (make, shape) in LAYERS.items()}
    return {"bn": bn, "ddp": run_engine("ddp", 0, 1), "cut": cut(0, 1, passes=1)}
