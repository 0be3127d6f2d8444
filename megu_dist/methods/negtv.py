"""Negated task vector (Ilharco et al. 2023, "Editing models with task arithmetic").

θ_f is θ_o fine-tuned on D_f; the unlearned model is θ_o - λ · (θ_f - θ_o). Recommended: λ chosen on validation data,
1 epoch at a small learning rate. Deviates: none of note; batch-norm statistics stay those of θ_o. No retained image
is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from megu_dist.config.registry import register
from megu_dist.config.schema import MethodSettings
from megu_dist.methods.base import Method, Space
from megu_dist.methods.losses import cross_entropy_sum

if TYPE_CHECKING:
    from torch import Tensor, nn

    from megu_dist.engine.batch import Batch, Rows
    from megu_dist.engine.context import Context


@dataclass(kw_only=True)
class NegTVSettings(MethodSettings):
    """How far to go."""

    strength: float = 1.0  # λ: how much of the task vector is subtracted


@register("method", "negtv", NegTVSettings)
class NegTV(Method):
    """Subtracts the direction in which training on forget images moves the weights."""

    search: ClassVar[Space] = {"train.lr": ("log", 1e-4, 1e-2), "method.strength": ("log", 0.1, 3.0)}

    def __init__(self, settings: NegTVSettings) -> None:
        self.settings = settings

    def unlearn(self, ctx: Context, model: nn.Module, forget: Rows | None, retain: Rows) -> nn.Module:
        """See :class:`megu_dist.methods.base.Method`."""
        original = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
        learned = {name for name, _ in model.named_parameters()}

        def loss(forget_logits: Tensor, _: Tensor, batch: Batch) -> tuple[Tensor, Tensor, float]:
            return cross_entropy_sum(forget_logits, batch.forget.label), forget_logits.new_zeros(()), 1.0

        def negate(state: dict[str, Tensor]) -> dict[str, Tensor]:
            return {
                name: before - self.settings.strength * (state[name].to(before.dtype) - before)
                if name in learned
                else before
                for name, before in original.items()
            }

        model = ctx.fit(model, forget, None, loss)
        ctx.edit_weights(negate)
        return model
