"""Between the original and the fine-tuned weights: the nearest point to the original ones that has forgotten.

Weights on the line between a model and its fine-tuned copy keep more of what the model knew than the copy does, and
most of what the copy has learnt (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models"). Fine-tuning here goes
further than forgetting needs, so the point is looked for where forgotten classes are just not recognised any more.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

from megu_dist.data import plan
from megu_dist.methods.losses import logits_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from megu_dist.engine.batch import Rows
    from megu_dist.engine.context import Context, State

BATCH = 128  # images of a forward pass
IMAGES = 1024  # forget images that are looked at: a mean of .01 is then known to about .002
HALVINGS = 5  # of the line: the share is known to 1/32


def until_forgotten(ctx: Context, model: nn.Module, forget: Rows, residual: float) -> None:
    """Has the whole model's weights moved back towards those that ``model`` has now, before a fit.

    As far as the mean probability of the forgotten classes on forget images stays at most ``residual``, and not at all
    where the fine-tuned weights exceed it. Works on rank 0, after the last step; running statistics move as weights do.
    """
    if ctx.rank:
        return
    original = copy.deepcopy(model).cpu().eval().requires_grad_(False)

    def edit(state: State) -> State:
        start = {name: value.clone() for name, value in original.state_dict().items()}
        moved = original.to(ctx.device)
        images = _images(ctx, forget)

        def at(share: float) -> State:
            return {name: _mix(start[name], value, share) for name, value in state.items()}

        def remembered(share: float) -> float:
            moved.load_state_dict(at(share))
            return _probability(ctx, moved, images)

        low, high = 0.0, 1.0
        if remembered(high) <= residual:
            for _ in range(HALVINGS):
                middle = (low + high) / 2
                low, high = (low, middle) if remembered(middle) <= residual else (middle, high)
        ctx.say(interpolated=high)
        return at(high) if high < 1 else state

    ctx.edit_weights(edit)


def _mix(start: Tensor, end: Tensor, share: float) -> Tensor:
    return start.lerp(end.to(start.dtype), share) if start.is_floating_point() else end


def _images(ctx: Context, forget: Rows) -> list[Tensor]:
    """The first forget images of an epoch's order, which is a random one; the same whatever the number of workers."""
    count = min(forget.count, IMAGES)
    some = replace(forget.plain(), rows=lambda epoch: forget.rows(epoch)[:count], count=count)
    parts = some.steps(0, plan.num_steps(count, BATCH), 0, 0, 1, ctx.device)
    return [part.image for part in parts if len(part)]


def _probability(ctx: Context, model: nn.Module, images: list[Tensor]) -> float:
    """Mean probability of the forgotten classes together."""
    import torch

    with torch.no_grad():
        known = [logits_of(model, x.float() / 255, ctx).softmax(1)[:, list(ctx.forget_classes)].sum(1) for x in images]
    return float(torch.cat(known).mean())
