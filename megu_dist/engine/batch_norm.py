"""Batch normalisation over the global batch, so that results do not depend on the number of workers.

``sync`` averages mean and variance over all workers' images; ``local`` uses each worker's own (running statistics are
averaged before saving); ``frozen`` keeps the running statistics of the loaded model. torch's SyncBatchNorm needs CUDA;
this one runs on gloo, too, and weighs workers by their number of images.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm


class _Sum(torch.autograd.Function):
    """All-reduce whose gradient is the all-reduce of the gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        value = value.clone()
        distributed.all_reduce(value)
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        distributed.all_reduce(gradient)
        return gradient


def _synchronised(self: _BatchNorm, x: Tensor) -> Tensor:
    if not self.training:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
    dims = [0, *range(2, x.ndim)]
    values = x.float()
    count = values.new_full((1,), x.numel() / x.shape[1])
    total = _Sum.apply(torch.cat([values.sum(dims), values.square().sum(dims), count]))
    channels = x.shape[1]
    n = total[-1].detach()
    mean = total[:channels] / n
    variance = (total[channels : 2 * channels] / n - mean.square()).clamp_min(0)
    if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
        with torch.no_grad():
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            rate = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
            self.running_mean.lerp_(mean.detach(), rate)
            self.running_var.lerp_(variance.detach() * n / (n - 1).clamp_min(1), rate)
    shape = [1, -1, *[1] * (x.ndim - 2)]
    scale = (variance + self.eps).rsqrt()
    if self.weight is not None:
        scale = scale * self.weight.float()
    shift = -mean * scale + (0 if self.bias is None else self.bias.float())
    return (values * scale.view(shape) + shift.view(shape)).to(x.dtype)


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
