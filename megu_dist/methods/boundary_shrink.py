"""Boundary Shrink (Chen et al. 2023, "Boundary unlearning"): forget images move to the class across the nearest boundary.

The label of a forget image is the class, other than its own, that θ_o gives to x + ε · sign(∇_x CE(θ_o(x), y))
(FGSM). Fine-tunes on D_f with these labels. Recommended: ε = 0.1 in normalised units, learning rate 1e-5 with SGD, 10
epochs, no retained data. Deviates: ε in pixel units; forgotten classes are no legal labels; retained images may be
added (``retain_weight`` > 0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from megu_dist.config.registry import register
from megu_dist.config.schema import MethodSettings
from megu_dist.methods.base import Method, Space
from megu_dist.methods.losses import cross_entropy_sum, frozen_copy, logits_of, retain_sum

if TYPE_CHECKING:
    from torch import Tensor, nn

    from megu_dist.engine.batch import Batch, Rows
    from megu_dist.engine.context import Context


@dataclass(kw_only=True)
class BoundaryShrinkSettings(MethodSettings):
    """How far the boundary is looked for."""

    epsilon: float = 0.1  # FGSM step, pixel units
    retain_weight: float = 1.0  # 0 reads no retained image


@register("method", "boundary_shrink", BoundaryShrinkSettings)
class BoundaryShrink(Method):
    """Relabels forget images with the nearest other class (FGSM) and fine-tunes."""

    whole_weights: ClassVar[bool] = True
    search: ClassVar[Space] = {"train.lr": ("log", 3e-4, 3e-2), "method.epsilon": ("choice", 0.03, 0.1, 0.3)}

    def __init__(self, settings: BoundaryShrinkSettings) -> None:
        self.settings = settings

    def unlearn(self, ctx: Context, model: nn.Module, forget: Rows | None, retain: Rows) -> nn.Module:
        """See :class:`megu_dist.methods.base.Method`."""
        s, original = self.settings, frozen_copy(model, ctx)

        def loss(forget_logits: Tensor, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor, float]:
            moved = forget_logits.sum()
            if len(batch.forget):
                labels = nearest_labels(original, batch.forget.pixels(), batch.forget.label, s.epsilon, ctx)
                moved = cross_entropy_sum(forget_logits, labels)
            return moved, s.retain_weight * retain_sum(logits, batch, ctx), 1.0

        return ctx.fit(model, forget, retain if s.retain_weight > 0 else None, loss)


def nearest_labels(original: nn.Module, pixels: Tensor, labels: Tensor, epsilon: float, ctx: Context) -> Tensor:
    """(N,) the class across the nearest boundary; never the image's own nor a forgotten one."""
    import torch
    from torch.nn.functional import cross_entropy

    with torch.enable_grad():
        x = pixels.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(cross_entropy(logits_of(original, x, ctx), labels, reduction="sum"), x)
    with torch.no_grad():
        logits = logits_of(original, (pixels + epsilon * gradient.sign()).clamp(0, 1), ctx)
        logits[torch.arange(len(labels), device=labels.device), labels] = -torch.inf
        logits[:, list(ctx.gone_classes)] = -torch.inf
        return logits.argmax(1)
