"""What a training engine does for the fit loop: wrap a model, step it, save and restore its state."""

from __future__ import annotations

import functools
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from megu_dist.config.schema import TrainSettings


class Engine(Protocol):
    """One per worker process. Every method is collective: all ranks call it, in the same order."""

    def setup(self, model: nn.Module, train: TrainSettings, device: torch.device, passes: int = 1) -> None:
        """Takes the model, already on ``device``, and makes the optimiser; each step is a sum of ``passes`` losses."""

    def forward(self, pixel_values: Tensor, last: bool = True) -> Tensor:
        """Normalised images (N, C, H, W) → logits (N, num_labels); ``last``: of the passes of a step."""

    def step(self, loss: Tensor, lr: float, last: bool = True) -> None:
        """Backward pass; after the last of a step, gradient average over workers and one optimiser step at ``lr``."""

    def save(self, folder: Path) -> None:
        """Writes this rank's share of model and optimiser state."""

    def load(self, folder: Path, world: int | None = None) -> str | None:
        """Restores what :meth:`save` wrote on ``world`` workers (none: as many as now). Raises when it is incomplete.

        Returns why the optimiser starts afresh, or None where its state was restored, too.
        """

    def state_dict(self) -> dict[str, Tensor] | None:
        """The whole model's weights on rank 0 (CPU, fp32), None elsewhere."""


def resolve_precision(precision: str, device: torch.device) -> str:
    """``auto`` → bf16 where the device multiplies it natively, else fp32 (bf16 on a plain AVX2 CPU is slower)."""
    import torch

    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if _cpu_has_bf16() else "fp32"


@functools.cache  # asked at every step
def _cpu_has_bf16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """bf16 autocast, or nothing; parameters stay fp32 either way."""
    import torch

    return torch.autocast(device.type, torch.bfloat16, enabled=resolve_precision(precision, device) == "bf16")


def set_rate(optimizer: Any, lr: float) -> None:
    """The learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("rate", 1.0)


def make_optimizer(model: nn.Module, train: TrainSettings) -> torch.optim.Optimizer:
    """SGD with momentum or AdamW; biases and normalisation weights are not decayed (He et al. 2019).

    A group's ``rate``, where it has one, is its share of the learning rate (``train.layer_decay``).
    """
    import torch

    from megu_dist.engine.trainable import rates

    rate = rates(model, train.layer_decay)
    groups: list[dict[str, Any]] = []
    for share in sorted(set(rate.values()) or {1.0}):
        mine = [p for name, p in model.named_parameters() if p.requires_grad and rate.get(name, 1.0) == share]
        for decay, chosen in (
            (train.weight_decay, [p for p in mine if p.ndim > 1]),
            (0.0, [p for p in mine if p.ndim <= 1]),
        ):
            if chosen:
                groups.append({"params": chosen, "weight_decay": decay} | ({"rate": share} if rate else {}))
    if train.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=train.lr)
    return torch.optim.SGD(groups, lr=train.lr, momentum=train.momentum, nesterov=train.momentum > 0)


THREADS = "MEGU_THREADS"  # set for processes that share a machine with others that megu does not know of


def set_threads(threads: int, workers_here: int) -> int:
    """Caps torch's threads so that the workers of a node share its cores; returns the number."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = threads or int(os.environ.get(THREADS, 0)) or max(1, cores // max(1, workers_here))
    torch.set_num_threads(count)
    return count
