"""NegGrad+ (Kurmanji et al. 2023, "Towards Unbounded Machine Unlearning"): ascent on D_f, descent on D_r, at once.

Minimises γ · CE(D_r) - (1 - γ) · CE(D_f). Recommended: γ = 0.95-0.999, learning rate 0.01, 5-10 epochs. Deviates: one
joint step for both terms, a budgeted sample of D_r.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from megu_dist.config.registry import register
from megu_dist.config.schema import MethodSettings
from megu_dist.methods.base import Method, Space
from megu_dist.methods.losses import cross_entropy_sum, retain_sum

if TYPE_CHECKING:
    from torch import Tensor, nn

    from megu_dist.engine.batch import Batch, Rows
    from megu_dist.engine.context import Context


@dataclass(kw_only=True)
class NegGradSettings(MethodSettings):
    """The balance of the two losses."""

    gamma: float = 0.95  # weight of retained images; forget images get 1 - gamma, with a minus sign


@register("method", "neggrad", NegGradSettings)
class NegGrad(Method):
    """NegGrad+: gradient ascent on forget images together with descent on retained ones."""

    search: ClassVar[Space] = {"train.lr": ("log", 1e-3, 3e-2), "method.gamma": ("uniform", 0.8, 0.999)}

    def __init__(self, settings: NegGradSettings) -> None:
        self.settings = settings

    def unlearn(self, ctx: Context, model: nn.Module, forget: Rows | None, retain: Rows) -> nn.Module:
        """See :class:`megu_dist.methods.base.Method`."""
        gamma = self.settings.gamma

        def loss(forget_logits: Tensor, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor, float]:
            labels = batch.forget.label if len(batch.forget) else None
            ascent = forget_logits.sum() if labels is None else -cross_entropy_sum(forget_logits, labels)
            return ascent, gamma * retain_sum(logits, batch, ctx), 1 - gamma

        return ctx.fit(model, forget, retain, loss)
