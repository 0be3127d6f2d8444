"""DeepSpeed with ZeRO 0 to 3 (Rajbhandari et al. 2020), on gloo or NCCL, without any operator that compiles at run time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megu_dist.config.registry import register
from megu_dist.config.schema import EngineSettings, TrainSettings
from megu_dist.engine.base import make_optimizer, resolve_precision

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

TAG = "state"


@dataclass(kw_only=True)
class DeepSpeedSettings(EngineSettings):
    """``zero_stage``: 0 nothing is sharded, 1 optimiser state, 2 + gradients, 3 + parameters."""

    zero_stage: int = 0


def disable_compiled_ops() -> None:
    """Takes DeepSpeed's just-in-time operators out, before anything of it starts.

    On a CPU, ``init_distributed`` builds ``deepspeed_shm_comm`` at first use, for inference only; a build that was
    killed leaves a lock on which every later run waits for ever. ``deepspeed.ops`` looks operators up in this
    dictionary and keeps what is stored there.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__ = {}


@register("engine", "deepspeed", DeepSpeedSettings)
class DeepSpeedEngine:
    """DeepSpeed: optimiser state, gradients and parameters sharded over workers as engine.zero_stage says."""

    def __init__(self, settings: DeepSpeedSettings) -> None:
        self.settings = settings

    def setup(self, model: nn.Module, train: TrainSettings, device: torch.device) -> None:
        import logging

        import deepspeed
        from deepspeed.utils import logger

        logger.setLevel(logging.WARNING)
        disable_compiled_ops()
        deepspeed.init_distributed("nccl" if device.type == "cuda" else "gloo")
        self.model, self.train, self.device = model, train, device
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=model, optimizer=make_optimizer(model, train), config=self._config()
        )

    def _config(self) -> dict[str, Any]:
        bf16 = resolve_precision(self.train.precision, self.device) == "bf16"
        return {
            # The loss is already a share of the global mean, so DeepSpeed only needs to know of one micro-batch a step.
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {
                "stage": self.settings.zero_stage,
                "stage3_gather_16bit_weights_on_model_save": True,
                "overlap_comm": self.device.type == "cuda",
            },
            "torch_autocast": {"enabled": bf16, "dtype": "bfloat16"},
            "gradient_clipping": self.train.clip_grad_norm,
            "steps_per_print": 1 << 30,
            "wall_clock_breakdown": False,
        }

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.engine(pixel_values=pixel_values).logits.float()

    def step(self, loss: Tensor, lr: float) -> None:
        self.engine.backward(loss)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.engine.step()

    def save(self, folder: Path) -> None:
        self.engine.save_checkpoint(str(folder), tag=TAG)

    def load(self, folder: Path) -> None:
        path, _ = self.engine.load_checkpoint(str(folder), tag=TAG)
        if path is None:
            raise RuntimeError(f"DeepSpeed found no checkpoint in {folder}")

    def state_dict(self) -> dict[str, Tensor] | None:
        import deepspeed
        import torch

        rank = torch.distributed.get_rank()
        if self.settings.zero_stage < 3:
            full = self.model.state_dict()
            return {name: value.detach().cpu().clone() for name, value in full.items()} if rank == 0 else None
        # One parameter at a time is whole on a device; only rank 0 keeps it.
        state = {name: value.detach().cpu().clone() for name, value in self.model.named_buffers()}
        for name, parameter in self.model.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter]):
                if rank == 0:
                    state[name] = parameter.detach().cpu().clone()
        return state if rank == 0 else None
