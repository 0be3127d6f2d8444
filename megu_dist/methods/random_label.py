"""Random labels (Amnesiac unlearning, Graves et al. 2021): fine-tune on D_f with wrong labels, and on D_r with true ones.

Recommended: learning rate 0.01-0.1, 1-5 epochs. Deviates: labels are drawn anew each epoch, seeded by image, from the
classes that are neither the image's own nor forgotten; a budgeted sample of D_r.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from megu_dist.config.registry import register
from megu_dist.config.schema import MethodSettings
from megu_dist.methods.base import Method, Space
from megu_dist.methods.losses import cross_entropy_sum, random_labels, retain_sum

if TYPE_CHECKING:
    from torch import Tensor, nn

    from megu_dist.engine.batch import Batch, Rows
    from megu_dist.engine.context import Context


@dataclass(kw_only=True)
class RandomLabelSettings(MethodSettings):
    """The forget loss."""

    lambda_forget: float = 1.0  # weight of forget images


@register("method", "random_label", RandomLabelSettings)
class RandomLabel(Method):
    """Random labels for forget images (amnesiac unlearning)."""

    search: ClassVar[Space] = {"train.lr": ("log", 1e-3, 1e-1), "method.lambda_forget": ("log", 0.05, 2.0)}

    def __init__(self, settings: RandomLabelSettings) -> None:
        self.settings = settings

    def unlearn(self, ctx: Context, model: nn.Module, forget: Rows | None, retain: Rows) -> nn.Module:
        """See :class:`megu_dist.methods.base.Method`."""

        def loss(forget_logits: Tensor, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor, float]:
            wrong = forget_logits.sum()
            if len(batch.forget):
                labels = random_labels(batch.forget, ctx, forget_logits.shape[1], batch.epoch)
                wrong = cross_entropy_sum(forget_logits, labels)
            return wrong, retain_sum(logits, batch, ctx), self.settings.lambda_forget

        return ctx.fit(model, forget, retain, loss)
