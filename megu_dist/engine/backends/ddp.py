"""Plain PyTorch: DistributedDataParallel with more than one worker, the bare model with one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megu_dist.config.registry import register
from megu_dist.config.schema import EngineSettings, TrainSettings
from megu_dist.engine.base import autocast, make_optimizer, set_rate

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@dataclass(kw_only=True)
class DdpSettings(EngineSettings):
    """How gradients travel."""

    bucket_mb: int = 25  # gradients are averaged in buckets of so many MiB


@register("engine", "ddp", DdpSettings)
class DdpEngine:
    """PyTorch DistributedDataParallel; every worker holds the whole model and optimiser."""

    def __init__(self, settings: DdpSettings) -> None:
        self.settings = settings

    def setup(self, model: nn.Module, train: TrainSettings, device: torch.device, passes: int = 1) -> None:
        from torch import distributed
        from torch.nn.parallel import DistributedDataParallel

        self.model, self.train, self.device = model, train, device
        self.optimizer = make_optimizer(model, train)
        self.wrapped: Any = model
        if distributed.is_initialized() and distributed.get_world_size() > 1:
            self.wrapped = DistributedDataParallel(
                model,
                device_ids=[device.index] if device.type == "cuda" else None,
                broadcast_buffers=False,  # batch-norm statistics are kept equal by the fit loop
                bucket_cap_mb=self.settings.bucket_mb,
                find_unused_parameters=False,
            )

    def forward(self, pixel_values: Tensor, last: bool = True) -> Tensor:
        self.wrapped.require_backward_grad_sync = last  # what DistributedDataParallel.no_sync sets
        with autocast(self.train.precision, self.device):
            return self.wrapped(pixel_values=pixel_values).logits.float()

    def step(self, loss: Tensor, lr: float, last: bool = True) -> None:
        from torch.nn.utils import clip_grad_norm_

        loss.backward()
        if not last:
            return
        if self.train.clip_grad_norm > 0:
            clip_grad_norm_(self.model.parameters(), self.train.clip_grad_norm)
        set_rate(self.optimizer, lr)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def save(self, folder: Path) -> None:
        import torch

        if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
            torch.save(
                {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}, folder / "state.pt"
            )

    def load(self, folder: Path, world: int | None = None) -> str | None:  # every worker has the same state
        import torch

        state = torch.load(folder / "state.pt", map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        return None

    def state_dict(self) -> dict[str, Tensor] | None:
        import torch

        if torch.distributed.is_initialized() and torch.distributed.get_rank() != 0:
            return None
        return {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}
