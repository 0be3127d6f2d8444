"""Loss-free SSD (Foster et al. 2024, "Loss-free machine unlearning"): SSD without labels.

The importance of a weight is the mean of |∂ ‖f(x)‖² / ∂θ| over images (memory-aware synapses, Aljundi et al. 2018)
instead of the Fisher information. Recommended and deviating as in :mod:`megu_dist.methods.ssd`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from megu_dist.config.registry import register
from megu_dist.methods.importance import mean_importance
from megu_dist.methods.ssd import Ssd, SsdSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from megu_dist.engine.batch import Rows
    from megu_dist.engine.context import Context


@dataclass(kw_only=True)
class LfssdSettings(SsdSettings):
    """As of SSD."""


@register("method", "lfssd", LfssdSettings)
class Lfssd(Ssd):
    """SSD by output sensitivity: needs no labels."""

    def importance(self, ctx: Context, model: nn.Module, rows: Rows) -> dict[str, Tensor]:
        """Mean of |∂ ‖f(x)‖² / ∂θ| per image."""
        from torch import Tensor

        return mean_importance(ctx, model, rows, lambda logits, _: logits.square().sum(), Tensor.abs)
