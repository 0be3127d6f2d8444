"""Between the original and the fine-tuned weights: the nearest point to the original ones that has forgotten.

Weights on the line between a model and its fine-tuned copy keep more of what the model knew than the copy does, and
most of what the copy has learnt (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models"). Fine-tuning here goes
further than forgetting needs, so the point is looked for where forgotten classes are just not recognised any more.
What is left of a class's probability there is taken by its bias in the last layer, which a model that never met the
class would have low, too.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

from megu_dist.data import plan
from megu_dist.methods.losses import logits_of
from megu_dist.models import layers

if TYPE_CHECKING:
    from torch import Tensor, nn

    from megu_dist.engine.batch import Part, Rows
    from megu_dist.engine.context import Context, State

BATCH = 128  # images of a forward pass
IMAGES = 1024  # forget images that are looked at: a mean of .01 is then known to about .002
HALVINGS = 5  # of the line: the share is known to 1/32


def bias_name(model: nn.Module) -> str | None:
    """The last layer's bias in the model's state; None without one."""
    last = layers.head(model)
    if last is None or last.bias is None:
        return None
    return next(f"{name}.bias" for name, module in model.named_modules() if module is last)


def until_forgotten(ctx: Context, model: nn.Module, forget: Rows, residual: float, bias: str | None = None) -> None:
    """Has the whole model's weights moved back towards those that ``model`` has now, before a fit.

    As far as the mean probability of the forgotten classes on forget images stays at most ``residual``, and not at all
    where the fine-tuned weights exceed it. Where they do not, each forgotten class's entry of ``bias`` is then lowered
    until the class is as unlikely for its images as the least likely retained class is. Works on rank 0, after the last
    step; running statistics move as weights do.
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
        if remembered(high) > residual:  # a bias would only hide that nothing is forgotten
            ctx.say(interpolated=high)
            return state
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if remembered(middle) <= residual else (middle, high)
        ctx.say(interpolated=high)
        nearest = at(high) if high < 1 else dict(state)
        if bias is not None:
            moved.load_state_dict(nearest)
            surplus = _surplus(ctx, moved, images)
            ctx.say(bias_lowered=[round(float(value), 3) for value in surplus])
            nearest[bias] = nearest[bias].clone()
            nearest[bias][list(ctx.forget_classes)] -= surplus.to(nearest[bias].dtype)
        return nearest

    ctx.edit_weights(edit)


def _mix(start: Tensor, end: Tensor, share: float) -> Tensor:
    return start.lerp(end.to(start.dtype), share) if start.is_floating_point() else end


def _images(ctx: Context, forget: Rows) -> list[Part]:
    """The first forget images of an epoch's order, which is a random one; the same whatever the number of workers."""
    count = min(forget.count, IMAGES)
    some = replace(forget.plain(), rows=lambda epoch: forget.rows(epoch)[:count], count=count)
    parts = some.steps(0, plan.num_steps(count, BATCH), 0, 0, 1, ctx.device)
    return [part for part in parts if len(part)]


def _logits(ctx: Context, model: nn.Module, images: list[Part]) -> Tensor:
    import torch

    with torch.no_grad():
        return torch.cat([logits_of(model, part.pixels(), ctx).float() for part in images]).cpu()


def _probability(ctx: Context, model: nn.Module, images: list[Part]) -> float:
    """Mean probability of the forgotten classes together."""
    return float(_logits(ctx, model, images).softmax(1)[:, list(ctx.forget_classes)].sum(1).mean())


def _surplus(ctx: Context, model: nn.Module, images: list[Part]) -> Tensor:
    """(F,) by how much each forgotten class's mean logit exceeds that of the least likely retained class; at least 0.

    On images of the class; on all of them where there is none of it.
    """
    import torch

    logits = _logits(ctx, model, images)
    label = torch.cat([part.label for part in images]).cpu()
    least = logits.index_fill(1, torch.tensor(ctx.gone_classes), torch.inf).amin(1)
    found = []
    for place in ctx.forget_classes:
        own = label == place if bool((label == place).any()) else torch.ones_like(label, dtype=torch.bool)
        found.append((logits[own, place] - least[own]).mean().clamp(min=0))
    return torch.stack(found)
