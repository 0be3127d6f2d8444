"""DeepSpeed with ZeRO 0 to 3 (Rajbhandari et al. 2020), on gloo or NCCL, without any operator that compiles at run time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megu_dist.config.registry import register
from megu_dist.config.schema import EngineSettings, TrainSettings
from megu_dist.engine.backends import zero_state
from megu_dist.engine.base import make_optimizer, resolve_precision, set_rate

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

TAG = "state"


@dataclass(kw_only=True)
class DeepSpeedSettings(EngineSettings):
    """What is sharded over the workers, and what is kept in the CPU's memory."""

    zero_stage: int = 0  # sharded over workers: 0 nothing | 1 optimiser state | 2 + gradients | 3 + parameters
    offload: str = "none"  # to the CPU's memory: none | optimizer (stages 1 to 3) | parameters (as well; stage 3)


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

    def setup(self, model: nn.Module, train: TrainSettings, device: torch.device, passes: int = 1) -> None:
        import logging

        import deepspeed
        from deepspeed.utils import logger

        logger.setLevel(logging.WARNING)
        disable_compiled_ops()
        deepspeed.init_distributed("nccl" if device.type == "cuda" else "gloo")
        self.model, self.train, self.device, self.passes = model, train, device, passes
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=model, optimizer=make_optimizer(model, train), config=self._config()
        )

    def _config(self) -> dict[str, Any]:
        bf16 = resolve_precision(self.train.precision, self.device) == "bf16"
        zero: dict[str, Any] = {
            "stage": self.settings.zero_stage,
            "stage3_gather_16bit_weights_on_model_save": True,
            "overlap_comm": self.device.type == "cuda",
        }
        if self.settings.offload != "none":
            zero["offload_optimizer"] = {"device": "cpu", "pin_memory": self.device.type == "cuda"}
        if self.settings.offload == "parameters":
            zero["offload_param"] = {"device": "cpu", "pin_memory": self.device.type == "cuda"}
        return {
            # The loss is already a share of the global mean, so DeepSpeed only needs to know of the passes of a step.
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": self.passes,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,  # its own CPU optimiser would be compiled at run time
            "zero_optimization": zero,
            "torch_autocast": {"enabled": bf16, "dtype": "bfloat16"},
            "gradient_clipping": self.train.clip_grad_norm,
            "steps_per_print": 1 << 30,
            "wall_clock_breakdown": False,
        }

    def forward(self, pixel_values: Tensor, last: bool = True) -> Tensor:
        return self.engine(pixel_values=pixel_values).logits.float()

    def step(self, loss: Tensor, lr: float, last: bool = True) -> None:
        self.engine.backward(loss * self.passes)  # DeepSpeed divides by their number
        set_rate(self.optimizer, lr)
        self.engine.step()

    def save(self, folder: Path) -> None:
        self.engine.save_checkpoint(str(folder), tag=TAG)

    def load(self, folder: Path, world: int | None = None) -> str | None:
        import torch

        if self.settings.zero_stage > 0 and world not in (None, torch.distributed.get_world_size()):
            return zero_state.restore(self.engine, folder / TAG)
        path, _ = self.engine.load_checkpoint(str(folder), tag=TAG)
        if path is None:
            raise RuntimeError(f"DeepSpeed found no checkpoint in {folder}")
        return None

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
