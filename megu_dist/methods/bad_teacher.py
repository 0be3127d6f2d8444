"""Bad Teacher (Chundawat et al. 2023, "Can bad teaching induce forgetting?").

The student θ_u learns from θ_o on retained images and from a randomly initialised network on forget images: minimises
KL(θ_random ‖ θ_u) over D_f plus KL(θ_o ‖ θ_u) over D_r. Recommended: one epoch, Adam 1e-4, 30 % of D_r, T = 1.
Deviates: the optimiser of ``train.*``; both terms are means over their own images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from megu_dist.config.registry import register
from megu_dist.config.schema import MethodSettings
from megu_dist.methods.base import Method, Space
from megu_dist.methods.losses import frozen_copy, kl_sum, logits_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from megu_dist.engine.batch import Batch, Rows
    from megu_dist.engine.context import Context


@dataclass(kw_only=True)
class BadTeacherSettings(MethodSettings):
    """Weights of the two teachers."""

    temperature: float = 1.0  # of both teachers
    lambda_forget: float = 1.0  # weight of the incompetent teacher


@register("method", "bad_teacher", BadTeacherSettings)
class BadTeacher(Method):
    """Distils the original on retained images and a random network on forget images."""

    whole_weights: ClassVar[bool] = True
    search: ClassVar[Space] = {"train.lr": ("log", 1e-3, 1e-1), "method.lambda_forget": ("log", 0.05, 2.0)}

    def __init__(self, settings: BadTeacherSettings) -> None:
        self.settings = settings

    def unlearn(self, ctx: Context, model: nn.Module, forget: Rows | None, retain: Rows) -> nn.Module:
        """See :class:`megu_dist.methods.base.Method`."""
        import torch

        good, bad = frozen_copy(model, ctx), frozen_copy(ctx.untrained(model), ctx)
        t = self.settings.temperature

        def loss(forget_logits: Tensor, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor, float]:
            wrong, right = forget_logits.sum(), logits.sum()
            with torch.no_grad():
                taught = logits_of(bad, batch.forget.pixels(), ctx) if len(batch.forget) else forget_logits
                known = logits_of(good, batch.retain.pixels(), ctx) if len(batch.retain) else logits
            if len(batch.forget):
                wrong = kl_sum(taught, forget_logits, t)
            if len(batch.retain):
                right = kl_sum(known, logits, t)
            return wrong, right, self.settings.lambda_forget

        return ctx.fit(model, forget, retain, loss)
