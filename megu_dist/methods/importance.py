"""Per-image importance of every weight, summed over a set of images: what SSD and LFSSD compare.

Sums of *per-image* squares or absolute values do not depend on batches or workers; squares of batch gradients (as in
the authors' code of SSD) do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

    from megu_dist.engine.batch import Rows
    from megu_dist.engine.context import Context

FLOATS_AT_ONCE = 1 << 26  # of per-image gradients held together
Scalar = Callable[["Tensor", "Tensor"], "Tensor"]  # logits (1, C), label (1,) → scalar to differentiate


def mean_importance(
    ctx: Context, model: nn.Module, rows: Rows, scalar: Scalar, power: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Mean over ``rows`` (first epoch's, on all workers) of ``power(∂ scalar / ∂ θ)`` per image, by parameter name.

    The model is in evaluation mode, on the context's device.
    """
    import torch

    names = [name for name, p in model.named_parameters() if p.requires_grad]
    sums = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in model.named_parameters() if name in names}
    size = sum(value.numel() for value in sums.values())
    chunk = max(1, FLOATS_AT_ONCE // max(1, size))
    count = torch.zeros(1, dtype=torch.float64, device=ctx.device)
    per_image = _vectorised(model, scalar)
    for part in ctx.once(rows):
        for start in range(0, len(part), chunk):
            images = ctx.model_input(part.image[start : start + chunk].float() / 255)
            labels = part.label[start : start + chunk]
            for name, gradient in per_image(images, labels).items():
                sums[name] += power(gradient.float()).sum(0)
            count += len(labels)
    ctx.all_reduce([count, *sums.values()])
    return {name: value / float(count) for name, value in sums.items()}


def _vectorised(model: nn.Module, scalar: Scalar) -> Callable[[Tensor, Tensor], dict[str, Tensor]]:
    """images (N, C, H, W), labels (N,) → gradients (N, …) by name; one by one for models that vmap cannot take."""
    import torch
    from torch.func import functional_call, grad, vmap

    weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    rest = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad} | dict(
        model.named_buffers()
    )

    def value(weights: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(model, {**weights, **rest}, (), {"pixel_values": image[None]}).logits
        return scalar(logits.float(), label[None])

    gradient = grad(value)
    together: Callable[..., dict[str, Tensor]] | None = vmap(gradient, in_dims=(None, 0, 0))

    def compute(images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        nonlocal together
        if together is not None:
            try:
                return together(weights, images, labels)
            except RuntimeError:  # an operation without a batching rule
                together = None
        each = [gradient(weights, image, label) for image, label in zip(images, labels, strict=True)]
        return {name: torch.stack([one[name] for one in each]) for name in weights}

    return compute


def dampen(
    model: nn.Module, forget: dict[str, Tensor], whole: dict[str, Tensor], select: float, strength: float
) -> int:
    """θ ← θ · min(λ · I_D / I_f, 1) where I_f > α · I_D (Foster et al. 2024, eq. 4-5); returns how many weights moved."""
    import torch

    moved = 0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in forget:
                continue
            chosen = forget[name] > select * whole[name]
            factor = (strength * whole[name] / forget[name].clamp_min(1e-30)).clamp_max(1.0)
            parameter[chosen] *= factor[chosen].to(parameter.dtype)
            moved += int(chosen.sum())
    return moved


def whole_importance(
    forget: dict[str, Tensor], retain: dict[str, Tensor], forget_count: int, retain_count: int
) -> dict[str, Tensor]:
    """Of the whole training set, from the means over its two parts and their sizes."""
    total = forget_count + retain_count
    return {name: (forget[name] * forget_count + retain[name] * retain_count) / total for name in forget}
