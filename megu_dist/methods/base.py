"""The method contract: a method returns a model or raises; the runner never names one."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from torch import nn

    from megu_dist.engine.batch import Rows
    from megu_dist.engine.context import Context


class Method(Protocol):
    """An unlearning method. ``needs_perturbed``: its forget rows come from the perturb stage, else from the source."""

    needs_perturbed: ClassVar[bool]

    def unlearn(self, ctx: Context, model: nn.Module, forget: Rows | None, retain: Rows) -> nn.Module:
        """Runs on every worker of a Ray Train job, in step; returns the unlearned model."""
