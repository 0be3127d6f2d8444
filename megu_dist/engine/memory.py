"""What a training step takes: bytes per worker and floating-point operations, from a model that is never materialised.

Model states follow ZeRO (Rajbhandari et al. 2020) as DeepSpeed keeps them here: parameters, gradients and optimiser
state in fp32, and from stage 1 on one more fp32 copy of the partition that a worker updates. Activations are counted
rather than guessed: the tensors that autograd saves for one forward pass over fake tensors, which have shapes and no
memory. Not counted: communication buckets, the allocator's fragmentation, cuDNN's workspace.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from megu_dist.config.schema import MeguSettings, TrainSettings

FP32 = 4
PEAK = 989e12  # operations per second: bf16 tensor cores of an H100 SXM, dense
SHARE = 0.4  # of the peak, a usual figure for well-fed transformers
STATES = {"sgd": 1, "adamw": 2}  # fp32 numbers per parameter that the optimiser keeps


@dataclass(frozen=True)
class Step:
    """One forward pass over ``images`` images, and the model; sizes in numbers of parameters, bytes, operations."""

    parameters: int
    largest: int  # parameters of the largest module that has any of its own
    images: int
    activations: int  # bytes that the backward pass needs, beside the parameters
    flops: int  # of the forward pass
    trained: int | None = None  # parameters that are; none: all of them


@dataclass(frozen=True)
class Memory:
    """Bytes on a worker's device."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations


def measure(build: Callable[[], nn.Module], shape: tuple[int, ...], images: int, train: TrainSettings) -> Step:
    """Runs the model that ``build`` makes on fake images (``images``, *``shape``)."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.autograd.graph import saved_tensors_hooks
    from torch.utils.flop_counter import FlopCounterMode

    from megu_dist.engine import trainable

    saved: dict[int, int] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage.nbytes()
        return tensor

    with torch.device("meta"):
        model = trainable.add_low_rank(trainable.freeze(build().train(), train), train, 0)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")  # as fake tensors, which autocast takes for real ones
        if train.gradient_checkpointing:
            trainable.recompute_activations(model)
        counter = FlopCounterMode(display=False)
        own = {p.untyped_storage()._cdata for p in model.parameters()}
        lowered = torch.autocast("cpu", torch.bfloat16, enabled=train.precision != "fp32")
        with counter, saved_tensors_hooks(keep, lambda tensor: tensor), lowered:
            output = model(pixel_values=torch.empty(images, *shape))  # keeps the graph, and so the storages, alive
        bytes_saved = sum(size for key, size in saved.items() if key not in own)
        del output
    sizes = [sum(p.numel() for p in module.parameters(recurse=False)) for module in model.modules()]
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Step(sum(sizes), max(sizes), images, bytes_saved, counter.get_total_flops(), trained)


def memory(step: Step, train: TrainSettings, zero_stage: int, offload: str) -> Memory:
    """What a worker holds while it trains with ``train.num_workers`` workers."""
    world, every = train.num_workers, step.parameters * FP32
    trained = every if step.trained is None else step.trained * FP32

    def share(stage: int, size: int) -> int:
        """The whole size, or a worker's part where ZeRO of at least ``stage`` shards it."""
        return size // world if zero_stage >= stage else size

    states = STATES[train.optimizer] * share(1, trained) + (share(1, trained) if zero_stage else 0)
    weights = share(3, every) + (FP32 * step.largest if zero_stage == 3 else 0)
    if offload == "parameters":
        weights = FP32 * step.largest
    if offload != "none":
        states = 0
    return Memory(weights, share(2, trained), states, step.activations)


def forecast(
    settings: MeguSettings,
    build: Callable[[], nn.Module],
    shape: tuple[int, ...],
    forget: int,
    retain: int,
    noise: str | None = "both",
) -> list[tuple[str, str]]:
    """Lines for ``megu plan``: memory per worker, steps, operations. ``forget`` and ``retain`` count training images.

    ``noise``: what the perturb stage makes (``Pipeline.noise``); None where there is no such stage.
    """
    train, perturb = settings.train, settings.perturb
    passes = train.micro_batch_size or train.batch_size
    step = measure(build, shape, max(1, min(passes, -(-train.batch_size // train.num_workers))), train)
    engine = settings.engine
    held = memory(step, train, getattr(engine, "zero_stage", 0), getattr(engine, "offload", "none"))
    parts = ", ".join(
        f"{name} {_gib(getattr(held, name))}" for name in ("weights", "gradients", "optimizer", "activations")
    )
    epoch = forget + min(retain, train.retain_per_epoch or retain)
    steps = -(-epoch // train.batch_size)
    one = step.flops / step.images
    # A backward pass is two forward passes, or three with recomputed activations; towards pixels alone it is one.
    tuning = epoch * train.epochs * one * (4 if train.gradient_checkpointing else 3)
    if getattr(settings.method, "distill", 0):
        tuning += (epoch - forget) * train.epochs * one
    noises = {"both": perturb.draws + 1, "positive": perturb.draws, "negative": 1}.get(noise or "", 0)
    probed = min(retain, perturb.probe_images)
    made = 0.0 if noise is None else one * (probed + forget * (1 + 2 * perturb.steps * noises))
    hours = (tuning + made) / (PEAK * SHARE) / 3600
    some = step.trained not in (None, step.parameters)
    of_them = f", {(step.trained or 0) / 1e6:,.1f} M of them trained" if some else ""
    return [
        ("parameters", f"{step.parameters / 1e6:,.1f} M" + of_them),
        ("memory per worker", f"{_gib(held.total)} GiB: {parts} ({step.images} images a pass); buckets and workspaces apart"),
        ("fine-tuning", f"{train.epochs} × {steps:,} steps, {train.epochs * epoch:,} images, workers: {train.num_workers}"),
        ("operations", f"{tuning / 1e15:,.3g} PFLOP of fine-tuning, {made / 1e15:,.3g} of perturbing: {hours:,.3g} GPU hours "
         f"at {SHARE:.0%} of an H100's {PEAK / 1e12:.0f} TFLOP/s"),
    ]  # fmt: skip


def _gib(size: int) -> str:
    return f"{size / 2**30:,.2f}"
