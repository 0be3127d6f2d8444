"""Sums over images that several methods share. Each is a sum, never a mean: the fit loop divides once, globally."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from megu_dist.data.plan import hash_uniform

if TYPE_CHECKING:
    from torch import Tensor, nn

    from megu_dist.engine.batch import Batch, Part
    from megu_dist.engine.context import Context


def cross_entropy_sum(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Σ CE over (N, C) logits; zero for no image."""
    from torch.nn.functional import cross_entropy

    if not len(logits):
        return logits.sum()
    return cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)


def retain_sum(logits: Tensor, batch: Batch, ctx: Context) -> Tensor:
    """Σ CE over the step's retained images, with ``train.label_smoothing``."""
    labels = batch.retain.label if len(batch.retain) else logits.new_zeros(0)
    return cross_entropy_sum(logits, labels, ctx.train.label_smoothing)


def kl_sum(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """T² · Σ KL(teacher ‖ student) of (N, C) logits softened by T (Hinton et al. 2015); nats."""
    from torch.nn.functional import kl_div

    if not len(student):
        return student.sum()
    target = (teacher / temperature).log_softmax(1)
    value = kl_div((student / temperature).log_softmax(1), target, reduction="sum", log_target=True)
    return temperature**2 * value


def random_labels(part: Part, ctx: Context, num_classes: int, epoch: int) -> Tensor:
    """(N,) uniform over the classes that are neither the image's own nor forgotten; decided by (seed, epoch, row)."""
    import torch

    own = part.label.cpu().numpy()
    u = hash_uniform(ctx.seed, 41, epoch, part.row.cpu().numpy())
    free = np.setdiff1d(np.arange(num_classes), ctx.gone_classes)
    out = np.empty(len(own), np.int64)
    for label in np.unique(own):
        mine = own == label
        choices = free[free != label]
        out[mine] = choices[(u[mine] * len(choices)).astype(int)]
    return torch.from_numpy(out).to(part.label.device)


def frozen_copy(model: nn.Module, ctx: Context) -> nn.Module:
    """θ_o as it was, on the worker's device, in evaluation mode: a teacher. Take it before the fit starts."""
    import copy

    return copy.deepcopy(model).to(ctx.device).eval().requires_grad_(False)


def logits_of(model: nn.Module, pixels: Tensor, ctx: Context) -> Tensor:
    """(N, C) of images in pixel units, by a plain (unsharded) model; autocast as in training."""
    from megu_dist.engine.base import autocast

    with autocast(ctx.train.precision, ctx.device):
        return model(pixel_values=ctx.model_input(pixels)).logits.float()
