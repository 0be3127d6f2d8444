"""The method contract: a method returns a model or raises; the runner never names one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from torch import nn

    from megu_dist.engine.batch import Rows
    from megu_dist.engine.context import Context

# What a search tries: ("log", low, high), ("uniform", low, high), ("int", low, high) or ("choice", a, b, …), by key.
Space = dict[str, tuple[Any, ...]]


class Method(Protocol):
    """An unlearning method.

    ``needs_perturbed``: its forget rows come from the perturb stage, else from the source. ``whole_weights``: it reads
    or edits weights one by one, so it cannot run with parameters sharded over workers (engine.zero_stage=3).
    ``low_rank``: it can train low-rank updates (train.trainable=lora); methods that pick or edit single weights cannot.
    ``scenarios``: the forget scenarios that it is defined for; empty for all.
    """

    needs_perturbed: ClassVar[bool] = False
    whole_weights: ClassVar[bool] = False
    low_rank: ClassVar[bool] = True
    scenarios: ClassVar[tuple[str, ...]] = ()
    search: ClassVar[Space] = {}

    def noise(self) -> str:
        """Which Fragment-Align noise the method's settings make use of: both, positive, negative or none."""
        return "none"

    def unlearn(self, ctx: Context, model: nn.Module, forget: Rows | None, retain: Rows) -> nn.Module:
        """Runs on every worker of a Ray Train job, in step; returns the unlearned model.

        ``model`` holds θ_o on the CPU; rows are read from the source (or the perturb stage) in epochs.
        """
