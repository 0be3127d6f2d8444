"""ℓ1-sparse (Jia et al. 2023, "Model sparsity can simplify machine unlearning"): fine-tuning with an ℓ1 penalty.

Minimises CE(D_r) + γ_t · ‖θ‖₁, γ_t falling linearly to 0 over the epochs. Recommended: γ = 5e-4, learning rate 0.01,
10 epochs. Deviates: a budgeted sample of D_r an epoch; the schedule is by step.
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
class L1SparseSettings(MethodSettings):
    """The penalty."""

    gamma: float = 5e-4  # weight of ‖θ‖₁ at the start


@register("method", "l1_sparse", L1SparseSettings)
class L1Sparse(Method):
    """Fine-tuning on retained images with an ℓ1 penalty that fades."""

    whole_weights: ClassVar[bool] = True
    low_rank: ClassVar[bool] = False
    search: ClassVar[Space] = {"train.lr": ("log", 1e-3, 1e-1), "method.gamma": ("log", 1e-5, 1e-3)}

    def __init__(self, settings: L1SparseSettings) -> None:
        self.settings = settings

    def unlearn(self, ctx: Context, model: nn.Module, forget: Rows | None, retain: Rows) -> nn.Module:
        """See :class:`megu_dist.methods.base.Method`."""
        weights = [p for p in model.parameters() if p.requires_grad]

        def loss(_: Tensor, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor, float]:
            right = retain_sum(logits, batch, ctx)
            if len(batch.retain):
                # Times the local count: divided by the global count and summed over workers, it is there once.
                norm = sum((p.abs().sum() for p in weights), start=logits.new_zeros(()))
                right = right + self.settings.gamma * (1 - batch.progress) * norm * len(batch.retain)
            return logits.new_zeros(()), right, 0.0

        return ctx.fit(model, None, retain, loss)
