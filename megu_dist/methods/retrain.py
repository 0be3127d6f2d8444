"""Training on retained rows alone: the original model (nothing excluded) and the retrained reference θ_r."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from megu_dist.config.registry import register
from megu_dist.config.schema import MethodSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from megu_dist.engine.batch import Batch, Rows
    from megu_dist.engine.context import Context


@dataclass(kw_only=True)
class RetrainSettings(MethodSettings):
    """Nothing to set: ``train.*`` says it all."""


@register("method", "retrain", RetrainSettings)
class Retrain:
    """Trains from scratch on the retain set: exact, and as slow as training is."""

    needs_perturbed: ClassVar[bool] = False

    def __init__(self, settings: RetrainSettings) -> None:
        self.settings = settings

    def unlearn(self, ctx: Context, model: nn.Module, forget: Rows | None, retain: Rows) -> nn.Module:
        """Cross-entropy over retained rows; the forget rows are not looked at."""

        def loss(_: Tensor, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor, float]:
            from torch.nn.functional import cross_entropy

            zero = logits.new_zeros(())
            if not len(batch.retain):
                return zero, zero, 0.0
            smoothing = ctx.train.label_smoothing
            return zero, cross_entropy(logits, batch.retain.label, reduction="sum", label_smoothing=smoothing), 0.0

        return ctx.fit(model, None, retain, loss)
