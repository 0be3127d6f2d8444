"""MeGU: Machine-Guided Unlearning with Target Feature Disentanglement (arXiv 2602.17088).

Fine-tunes on forget images moved by Fragment-Align noise and re-labelled with semantically near labels, together with
a sample of retained images: minimises λ_f · CE(clip(x + α·N⁺ + β·N⁻), ŷ) over D_f plus CE(x, y) over D_r.
Deviates: labels are sampled per image and epoch by default (``perturb.label_policy``), and may be smoothed. With
``method.distill`` = δ > 0, retained images count as (1 - δ) · CE(x, y) + δ · KL(θ_o without forgotten classes ‖ θ_u).
Where whole classes are forgotten, the weights are then moved back towards θ_o as far as ``method.residual`` allows, and
the classes' biases lowered (``method.lower_bias``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from megu_dist.config.registry import register
from megu_dist.config.schema import MethodSettings
from megu_dist.methods import interpolate
from megu_dist.methods.base import Method, Space
from megu_dist.methods.losses import frozen_copy, kl_sum, logits_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from megu_dist.engine.batch import Batch, Part, Rows
    from megu_dist.engine.context import Context

RESIDUAL = 0.01  # at most .3 % of the forgotten images were recognised (docs/method.md)
RESIDUAL_LOWERED = 0.03  # up to 1 %, until biases are lowered
NEVER = -1e4  # a logit whose probability is 0; minus infinity would make KL undefined


@dataclass(kw_only=True)
class MeguMethodSettings(MethodSettings):
    """Noise strengths and the forget loss."""

    alpha: float = 0.5  # strength of N⁺
    beta: float = 0.0  # strength of N⁻
    lambda_forget: float = 0.5  # weight λ_f of the forget loss; of single images: of each, against 1 of a retained one
    label_smoothing: float = 0.0  # of perturbing labels
    distill: float = 0.0  # share δ of the retained loss that follows the original model, not the labels; a pass more
    residual: float | None = None  # mean p that a class may regain for nearer weights; null: .03, bias not lowered .01
    lower_bias: bool = True  # with residual: lower a forgotten class's bias until it is as unlikely as the least likely


@register("method", "megu", MeguMethodSettings)
class Megu(Method):
    """MeGU: perturbing labels and Fragment-Align noise, then a short fine-tuning."""

    needs_perturbed: ClassVar[bool] = True
    # What the search's objective can see. τ and κ shape what is predicted for forgotten images, which nobody can judge
    # without a retrained model: docs/method.md tells how they were chosen.
    search: ClassVar[Space] = {
        "train.lr": ("log", 4e-3, 2e-2),
        "method.alpha": ("choice", 0.0, 0.5),
        "method.lambda_forget": ("log", 0.3, 1.5),
    }

    def __init__(self, settings: MeguMethodSettings) -> None:
        self.settings = settings

    def noise(self) -> str:
        """See :class:`megu_dist.methods.base.Method`."""
        if self.settings.alpha and self.settings.beta:
            return "both"
        return "positive" if self.settings.alpha else "negative" if self.settings.beta else "none"

    def unlearn(self, ctx: Context, model: nn.Module, forget: Rows | None, retain: Rows) -> nn.Module:
        """See :class:`megu_dist.methods.base.Method`."""
        import torch

        from megu_dist.perturb.noise import mix

        scale, distill = ctx.settings.perturb.epsilon / 127, self.settings.distill
        teacher = frozen_copy(model, ctx) if distill else None
        bias = interpolate.bias_name(model) if self.settings.lower_bias else None
        residual = self.settings.residual
        if residual is None:
            residual = RESIDUAL_LOWERED if bias else RESIDUAL
        if residual and ctx.forget_classes and forget is not None:
            interpolate.until_forgotten(ctx, model, forget, residual, bias)

        def pixels(part: Part) -> Tensor:
            noise = (part.fields.get("noise_pos"), part.fields.get("noise_neg"))
            return mix(part.pixels(), *noise, scale, self.settings.alpha, self.settings.beta)

        def loss(forget_logits: Tensor, retain_logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor, float]:
            from torch.nn.functional import cross_entropy

            zero = retain_logits.new_zeros(())
            forget_sum = retain_sum = zero
            if len(batch.forget):
                forget_sum = cross_entropy(
                    forget_logits,
                    batch.forget.perturbing_label,
                    reduction="sum",
                    label_smoothing=self.settings.label_smoothing,
                )
            if len(batch.retain):
                retain_sum = cross_entropy(
                    retain_logits, batch.retain.label, reduction="sum", label_smoothing=ctx.train.label_smoothing
                )
            if teacher is not None and len(batch.retain):
                with torch.no_grad():
                    known = logits_of(teacher, batch.retain.pixels(), ctx)
                    known[:, list(ctx.gone_classes)] = NEVER
                retain_sum = (1 - distill) * retain_sum + distill * kl_sum(known, retain_logits)
            return forget_sum, retain_sum, self.settings.lambda_forget

        return ctx.fit(model, forget, retain, loss, pixels)
