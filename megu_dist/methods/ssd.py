"""Selective Synaptic Dampening (Foster et al. 2024, "Fast machine unlearning without retraining"): no training at all.

Weights whose Fisher information on D_f exceeds α times that on D are scaled by min(λ · I_D / I_f, 1). Recommended: α
= 10 (ResNet-18) or 5 (ViT), λ = 1. Deviates: the diagonal Fisher is the mean of per-image squared gradients of CE,
where the authors' code squares batch gradients; I_D comes from D_f and a sample of D_r (``train.retain_per_epoch``),
weighted by size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from megu_dist.config.registry import register
from megu_dist.config.schema import MethodSettings
from megu_dist.methods.base import Method, Space
from megu_dist.methods.importance import dampen, mean_importance, whole_importance

if TYPE_CHECKING:
    from torch import Tensor, nn

    from megu_dist.engine.batch import Rows
    from megu_dist.engine.context import Context


@dataclass(kw_only=True)
class SsdSettings(MethodSettings):
    """Which weights are dampened, and how much."""

    alpha: float = 10.0  # a weight is selected where it matters so many times more to forget images than to all
    dampening: float = 1.0  # λ: the strength of what is selected


@register("method", "ssd", SsdSettings)
class Ssd(Method):
    """Dampens the weights that matter to forget images more than to all images."""

    whole_weights: ClassVar[bool] = True
    low_rank: ClassVar[bool] = False
    search: ClassVar[Space] = {"method.alpha": ("log", 1.0, 100.0), "method.dampening": ("log", 0.05, 2.0)}

    def __init__(self, settings: SsdSettings) -> None:
        self.settings = settings

    def unlearn(self, ctx: Context, model: nn.Module, forget: Rows | None, retain: Rows) -> nn.Module:
        """See :class:`megu_dist.methods.base.Method`."""
        assert forget is not None
        model = model.to(ctx.device).eval()
        on_forget, on_retain = (self.importance(ctx, model, rows) for rows in (forget, retain))
        whole = whole_importance(on_forget, on_retain, forget.population, retain.population)
        ctx.say(moved=dampen(model, on_forget, whole, self.settings.alpha, self.settings.dampening))
        return model

    def importance(self, ctx: Context, model: nn.Module, rows: Rows) -> dict[str, Tensor]:
        """Diagonal Fisher information: mean of per-image squared gradients of CE."""
        from torch import Tensor
        from torch.nn.functional import cross_entropy

        return mean_importance(ctx, model, rows, cross_entropy, Tensor.square)
