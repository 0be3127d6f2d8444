"""Where a classifier's features are read: after each block, and before the last linear layer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from megu_dist.models.blocks import stages

if TYPE_CHECKING:
    from torch import Tensor, nn

PENULTIMATE = "penultimate"


def blocks(model: nn.Module, limit: int) -> dict[str, nn.Module]:
    """The model's blocks by name, in order: the children of its largest list of modules, evenly thinned to ``limit``.

    See :func:`megu_dist.models.blocks.stages`.
    """
    children = stages(model)
    if len(children) > limit:
        # The last block always stays.
        kept = np.unique(np.linspace(len(children) - 1, 0, limit).round().astype(int))
        children = [children[place] for place in kept]
    return dict(children)


def head(model: nn.Module) -> nn.Module | None:
    """The last linear layer that ends in the labels; its input is the penultimate feature."""
    from torch import nn

    labels = int(getattr(model.config, "num_labels", 0))
    linear = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == labels]
    return linear[-1] if linear else None


def pool(output: Any) -> Tensor | None:
    """A block's output as (N, D): the mean over space (N, D, H, W) or tokens (N, T, D); None for what is no feature."""
    output = _features(output)
    if output is None:
        return None
    if output.ndim == 3:
        output = output.mean(1)
    return output.flatten(2).mean(2).float() if output.ndim > 2 else output.float()


def pool_quarters(output: Any) -> Tensor | None:
    """A block's output as (N, 4·D): means over the quarters of the image (N, D, H, W) or of its square of tokens.

    Tokens (N, T, D) that stand before the square (a class token) are left out. Without a square, as :func:`pool`.
    """
    from torch.nn import functional as F

    found = _features(output)
    if found is not None and found.ndim == 3:
        side = math.isqrt(found.shape[1])
        found = found[:, -side * side :].transpose(1, 2).unflatten(2, (side, side))
    if found is None or found.ndim < 4 or min(found.shape[2:]) < 2:
        return pool(output)
    return F.adaptive_avg_pool2d(found.float(), 2).flatten(1)


def _features(output: Any) -> Tensor | None:
    """What a block hands on, from a tensor, a tuple or a model output."""
    import torch

    if not isinstance(output, torch.Tensor):
        values = list(output.values()) if hasattr(output, "values") else output
        output = values[0] if isinstance(values, list | tuple) and values else None
    return output if isinstance(output, torch.Tensor) and output.ndim > 1 else None


@contextmanager
def recorded(model: nn.Module, limit: int) -> Iterator[dict[str, Tensor]]:
    """A dict that each forward pass inside fills: layer name → pooled features (N, D)."""
    found: dict[str, Tensor] = {}

    def keep(name: str, output: Any) -> None:
        pooled = pool(output)
        if pooled is not None:
            found[name] = pooled.detach()

    def after(name: str) -> Any:
        return lambda module, inputs, output: keep(name, output)

    handles = [module.register_forward_hook(after(name)) for name, module in blocks(model, limit).items()]
    last = head(model)
    if last is not None:
        handles.append(last.register_forward_pre_hook(lambda module, inputs: keep(PENULTIMATE, inputs[0])))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
