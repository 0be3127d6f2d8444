"""Fine-tuning: go on training θ_o on retained images alone and let the rest be forgotten (catastrophic forgetting).

The simplest baseline of every unlearning paper (e.g. Golatkar et al. 2020; Warnecke et al. 2023). Recommended: the
original's own optimiser, learning rate 0.01-0.05, a few epochs. Deviates: a budgeted sample of D_r an epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from megu_dist.config.registry import register
from megu_dist.config.schema import MethodSettings
from megu_dist.methods.base import Method, Space
from megu_dist.methods.losses import retain_sum

if TYPE_CHECKING:
    from torch import Tensor, nn

    from megu_dist.engine.batch import Batch, Rows
    from megu_dist.engine.context import Context


@dataclass(kw_only=True)
class FinetuneSettings(MethodSettings):
    """Nothing to set beyond ``train.*``."""


@register("method", "finetune", FinetuneSettings)
class Finetune(Method):
    """Fine-tuning on retained images only."""

    search: ClassVar[Space] = {"train.lr": ("log", 1e-3, 1e-1)}

    def __init__(self, settings: FinetuneSettings) -> None:
        self.settings = settings

    def unlearn(self, ctx: Context, model: nn.Module, forget: Rows | None, retain: Rows) -> nn.Module:
        """Minimises CE over D_r."""

        def loss(_: Tensor, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor, float]:
            return logits.new_zeros(()), retain_sum(logits, batch, ctx), 0.0

        return ctx.fit(model, None, retain, loss)
