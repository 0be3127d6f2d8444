"""What a training engine does for the fit loop: wrap a model, step it, save and restore its state."""

from __future__ import annotations

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

    def load(self, folder: Path) -> None:
        """Restores what :meth:`save` wrote at the same world size. Raises when it is incomplete."""

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


def make_optimizer(model: nn.Module, train: TrainSettings) -> torch.optim.Optimizer:
    """SGD with momentum or AdamW; biases and normalisation weights are not decayed (He et al. 2019)."""
    import torch

    decay = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": train.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
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
