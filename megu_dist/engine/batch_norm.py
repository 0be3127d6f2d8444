"""Batch normalisation over the global batch, so that results do not depend on the number of workers.

``sync`` averages mean and variance over all workers' images; ``local`` uses each worker's own (running statistics are
averaged before saving); ``frozen`` keeps the running statistics of the loaded model. torch's SyncBatchNorm needs CUDA;
this one runs on gloo, too, and weighs workers by their number of images.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm


class _Synchronised(torch.autograd.Function):
    """Normalises by mean and variance over all workers' images; also returns both, and the number of values.

    Per-channel sums are taken by torch's own batch-norm kernels, which read an image once; one all-reduce of them in each
    direction. Gradient of x: γ/σ · (dy − Σdy/n − x̂ · Σ(dy·x̂)/n), with sums over all workers (Ioffe & Szegedy 2015).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        channels = x.shape[1]
        sums = x.new_zeros(2 * channels + 1, dtype=torch.float64)
        if x.numel():
            unused = torch.zeros(2, channels)  # statistics in fp32, whatever the images are
            mean, variance = (v.double() for v in torch.batch_norm_update_stats(x, unused[0], unused[1], 0.0))
            sums = torch.cat([mean, variance + mean.square(), mean.new_ones(1)]) * (x.numel() // channels)
        _all_reduce(sums)
        n = sums[-1]
        mean = sums[:channels] / n
        variance = (sums[channels:-1] / n - mean.square()).clamp_min(0)
        mean, variance, n = mean.float(), variance.float(), n.float()
        ctx.save_for_backward(x, weight, mean, variance, n)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, n)
        return _affine(x, mean, variance, weight, bias, eps), mean, variance, n

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        x, weight, mean, variance, n = ctx.saved_tensors
        channels = x.shape[1]
        inverse = (variance + ctx.eps).rsqrt()
        sums = mean.new_zeros(2, channels)
        if x.numel():
            kept, wanted = (mean, variance, mean, inverse), [False, True, True]
            dy = dy.contiguous(memory_format=torch.channels_last) if _is_channels_last(x) else dy.contiguous()
            ones = torch.ones_like(mean)  # Σ(dy·x̂) and Σdy, whatever the weight
            _, *own = torch.ops.aten.native_batch_norm_backward(dy, x, ones, *kept, False, ctx.eps, wanted)
            sums = torch.stack(own)
        total = sums.clone()
        _all_reduce(total)
        scale = inverse if weight is None else inverse * weight.float()
        by_x = -scale * inverse * total[0] / n
        shift = -scale * total[1] / n - by_x * mean
        zero, one = torch.zeros_like(mean), torch.ones_like(mean)
        dx = _affine(dy, zero, one, scale, shift, 0.0)
        if x.numel():
            dx += _affine(x, zero, one, by_x, zero, 0.0)
        return dx, sums[0] if ctx.needs_input_grad[1] else None, sums[1] if ctx.needs_input_grad[2] else None, None


def _all_reduce(tensor: Tensor) -> None:
    """Sums over workers, looking for the end of it rather than going to sleep.

    There are two of these a layer, of a few hundred numbers, and each takes less time than a core needs to wake up.
    """
    work = distributed.all_reduce(tensor, async_op=True)
    while not work.is_completed():
        os.sched_yield()
    work.wait()


def _affine(
    x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps) if x.numel() else x.clone()


def _is_channels_last(x: Tensor) -> bool:
    return x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)


def _synchronised(self: _BatchNorm, x: Tensor) -> Tensor:
    if not self.training:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
    out, mean, variance, n = _Synchronised.apply(x, self.weight, self.bias, self.eps)
    if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
        with torch.no_grad():
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            rate = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
            self.running_mean.lerp_(mean, rate)
            self.running_var.lerp_(variance * n / (n - 1).clamp_min(1), rate)
    return out


def apply(model: nn.Module, policy: str, world: int, device: torch.device) -> nn.Module:
    """Makes the model's batch-norm layers follow ``policy``; a model without any is returned as it is.

    Layers whose weights are not trained keep their statistics, too.
    """
    on_gpu = device.type == "cuda"
    if policy == "sync" and world > 1 and on_gpu:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for layer in layers(model):
        if policy == "frozen" or (layer.weight is not None and not layer.weight.requires_grad):
            layer.eval()
            layer.train = lambda mode=True, layer=layer: layer  # type: ignore[method-assign, misc]
        elif policy == "sync" and world > 1 and not on_gpu:
            layer.forward = _synchronised.__get__(layer)  # type: ignore[method-assign]
    return model


def layers(model: nn.Module) -> list[_BatchNorm]:
    """The model's batch-norm layers."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


@torch.no_grad()
def average_statistics(model: nn.Module) -> None:
    """Averages running statistics over workers (policy ``local``), so that every rank saves the same buffers."""
    for layer in layers(model):
        for buffer in (layer.running_mean, layer.running_var):
            if buffer is not None:
                distributed.all_reduce(buffer)
                buffer /= distributed.get_world_size()
