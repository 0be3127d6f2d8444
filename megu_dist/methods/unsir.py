"""UNSIR (Tarun et al. 2021, "Fast yet effective machine unlearning"): impair with error-maximising noise, then repair.

For each forgotten class, a matrix of noise images maximises θ_o's loss on that class. One impair epoch trains on
noise labelled with the forgotten class and on retained images; the following epochs repair on retained images alone.
Recommended: impair learning rate 0.02, repair 0.01, one epoch each, noise λ = 0.1. Deviates: one learning-rate
schedule for both; a noise image for each forget image, taken in turn from the learned matrix. The forget images
themselves are never shown. Class scenarios only.
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

    from megu_dist.engine.batch import Batch, Part, Rows
    from megu_dist.engine.context import Context


@dataclass(kw_only=True)
class UnsirSettings(MethodSettings):
    """How the noise is learned and used."""

    noise_images: int = 64  # per class
    noise_steps: int = 25  # of Adam, which learns the noise
    noise_lr: float = 0.1  # of the same
    penalty: float = 0.1  # weight of the noise's mean square
    impair_epochs: int = 1  # epochs on noise; the others repair


@register("method", "unsir", UnsirSettings)
class Unsir(Method):
    """Error-maximising noise impairs the class, retained images repair the rest."""

    whole_weights: ClassVar[bool] = True
    scenarios: ClassVar[tuple[str, ...]] = ("class",)
    search: ClassVar[Space] = {"train.lr": ("log", 1e-3, 1e-1), "method.penalty": ("log", 0.01, 1.0)}

    def __init__(self, settings: UnsirSettings) -> None:
        self.settings = settings

    def unlearn(self, ctx: Context, model: nn.Module, forget: Rows | None, retain: Rows) -> nn.Module:
        """See :class:`megu_dist.methods.base.Method`."""
        assert forget is not None
        original = frozen_copy(model, ctx)
        noise = {label: self._noise(original, label, ctx) for label in ctx.forget_classes}
        del original

        def pixels(part: Part) -> Tensor:
            import torch

            place = (part.row % self.settings.noise_images).tolist()
            return torch.stack([noise[int(y)][k] for y, k in zip(part.label.tolist(), place, strict=True)])

        def loss(forget_logits: Tensor, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor, float]:
            impair = forget_logits.sum()
            if len(batch.forget):
                impair = cross_entropy_sum(forget_logits, batch.forget.label)
            return impair, retain_sum(logits, batch, ctx), 1.0

        return ctx.fit(model, forget.until(self.settings.impair_epochs), retain, loss, pixels)

    def _noise(self, original: nn.Module, label: int, ctx: Context) -> Tensor:
        """(noise_images, C, H, W) in pixel units; the same on every worker."""
        import torch
        from torch.nn.functional import cross_entropy

        s = self.settings
        generator = torch.Generator().manual_seed(ctx.seed * 7919 + label)
        start = torch.rand(s.noise_images, *ctx.preprocess.shape, generator=generator).to(ctx.device)
        noise = start.requires_grad_(True)
        optimizer = torch.optim.Adam([noise], lr=s.noise_lr)
        target = torch.full((s.noise_images,), label, device=ctx.device)
        for _ in range(s.noise_steps):
            with torch.enable_grad():
                value = s.penalty * noise.square().mean() - cross_entropy(logits_of(original, noise, ctx), target)
                optimizer.zero_grad()
                value.backward()
            optimizer.step()
        return noise.detach()
