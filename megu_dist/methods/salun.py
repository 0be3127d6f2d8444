"""SalUn (Fan et al. 2024, "SalUn: Empowering machine unlearning via gradient-based weight saliency").

Random-label fine-tuning that moves only salient weights: those among the ``saliency`` share with the largest |∇_θ
CE(D_f)| at θ_o. Recommended: saliency 0.5, learning rate 1e-3-1e-1, 10 epochs. Deviates: labels avoid forgotten
classes and are drawn anew each epoch; a budgeted sample of D_r; momentum and weight decay see the masked gradient
only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from megu_dist.config.registry import register
from megu_dist.methods.base import Space
from megu_dist.methods.losses import cross_entropy_sum
from megu_dist.methods.random_label import RandomLabel, RandomLabelSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from megu_dist.engine.batch import Rows
    from megu_dist.engine.context import Context


@dataclass(kw_only=True)
class SalUnSettings(RandomLabelSettings):
    """Of random labels, and which weights may move."""

    saliency: float = 0.5  # share of the weights that may move


@register("method", "salun", SalUnSettings)
class SalUn(RandomLabel):
    """Random labels on the salient half of the weights."""

    whole_weights: ClassVar[bool] = True
    low_rank: ClassVar[bool] = False
    search: ClassVar[Space] = {**RandomLabel.search, "method.saliency": ("choice", 0.3, 0.5, 0.7)}

    def __init__(self, settings: SalUnSettings) -> None:
        self.saliency = settings.saliency
        super().__init__(settings)

    def unlearn(self, ctx: Context, model: nn.Module, forget: Rows | None, retain: Rows) -> nn.Module:
        """See :class:`megu_dist.methods.base.Method`."""
        assert forget is not None
        model = model.to(ctx.device)
        for parameter, mask in zip(model.parameters(), salient(ctx, model, forget, self.saliency), strict=True):
            if parameter.requires_grad:
                parameter.register_hook(lambda gradient, mask=mask: gradient * mask)
        return super().unlearn(ctx, model, forget, retain)


def salient(ctx: Context, model: nn.Module, forget: Rows, share: float) -> list[Tensor]:
    """A 0/1 mask per parameter: the ``share`` of all weights with the largest |Σ ∇ CE| over the forget rows."""
    import torch

    model.eval()
    trained = [p for p in model.parameters() if p.requires_grad]
    sums = [torch.zeros_like(p) for p in trained]
    for part in ctx.once(forget):
        if len(part):
            logits = model(pixel_values=ctx.model_input(part.pixels())).logits.float()
            for total, gradient in zip(
                sums, torch.autograd.grad(cross_entropy_sum(logits, part.label), trained), strict=True
            ):
                total += gradient
    ctx.all_reduce(sums)
    flat = torch.cat([total.abs().flatten() for total in sums])
    keep = torch.zeros_like(flat)
    keep[flat.argsort(descending=True)[: round(share * len(flat))]] = 1
    parts = iter(keep.split([p.numel() for p in trained]))
    return [next(parts).view_as(p) if p.requires_grad else torch.ones_like(p) for p in model.parameters()]
