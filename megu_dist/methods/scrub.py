"""SCRUB (Kurmanji et al. 2023, "Towards Unbounded Machine Unlearning").

Max steps push the student away from θ_o on forget images, min steps keep it near θ_o and the labels on retained ones:
minimises δ · KL(θ_o ‖ θ_u) + γ · CE over D_r and, in the first ``max_epochs`` epochs, -KL(θ_o ‖ θ_u) over D_f.
Recommended: δ = 0.001-0.5, γ = 0.99-1, learning rate 5e-4 with Adam, T = 4, 2-3 max epochs of 3-10. Deviates: max and
min terms are taken in one joint step rather than in alternate epochs; no rewinding (SCRUB+R).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from megu_dist.config.registry import register
from megu_dist.config.schema import MethodSettings
from megu_dist.methods.base import Method, Space
from megu_dist.methods.losses import frozen_copy, kl_sum, logits_of, retain_sum

if TYPE_CHECKING:
    from torch import Tensor, nn

    from megu_dist.engine.batch import Batch, Rows
    from megu_dist.engine.context import Context


@dataclass(kw_only=True)
class ScrubSettings(MethodSettings):
    """Weights of the min and max steps."""

    delta: float = 0.5  # weight of distillation on retained images
    gamma: float = 1.0  # weight of labels on retained images
    lambda_forget: float = 0.2  # weight of the step away from the original
    temperature: float = 4.0  # of the distillation
    max_epochs: int = 1  # epochs with steps away, the first ones


@register("method", "scrub", ScrubSettings)
class Scrub(Method):
    """SCRUB: away from the original on forget images, near it on retained ones."""

    whole_weights: ClassVar[bool] = True
    search: ClassVar[Space] = {
        "train.lr": ("log", 1e-3, 5e-2),
        "method.lambda_forget": ("log", 0.01, 1.0),
        "method.delta": ("log", 0.01, 1.0),
    }

    def __init__(self, settings: ScrubSettings) -> None:
        self.settings = settings

    def unlearn(self, ctx: Context, model: nn.Module, forget: Rows | None, retain: Rows) -> nn.Module:
        """See :class:`megu_dist.methods.base.Method`."""
        import torch

        s, teacher = self.settings, frozen_copy(model, ctx)

        def loss(forget_logits: Tensor, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor, float]:
            away, near = forget_logits.sum(), s.gamma * retain_sum(logits, batch, ctx)
            with torch.no_grad():
                on_forget = logits_of(teacher, batch.forget.pixels(), ctx) if len(batch.forget) else forget_logits
                on_retain = logits_of(teacher, batch.retain.pixels(), ctx) if len(batch.retain) else logits
            if len(batch.forget):
                away = -kl_sum(on_forget, forget_logits, s.temperature)
            if len(batch.retain):
                near = near + s.delta * kl_sum(on_retain, logits, s.temperature)
            return away, near, s.lambda_forget

        return ctx.fit(model, None if forget is None else forget.until(s.max_epochs), retain, loss)
