"""Fragment-Align noise (arXiv 2602.17088): projected sign-gradient steps on the frozen original model.

N⁺ minimises CE(f(x + N), ŷ), which reinforces the features shared with ŷ; N⁻ maximises CE(f(x + N), y), which
suppresses the features that say y. Both stay within ‖N‖∞ ≤ ε and x + N within [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

STEP = 1.5  # of ε, spread over the steps: the bound can be reached, and left again


def fragment_align(
    logits: Callable[[Tensor], Tensor], pixels: Tensor, target: Tensor, towards: bool, epsilon: float, steps: int
) -> Tensor:
    """Noise in pixel units, (N, C, H, W) like ``pixels`` in [0, 1].

    ``logits`` maps pixel units to logits with frozen weights; ``target`` (N,) is ŷ when ``towards``, else y.
    """
    import torch
    from torch.nn.functional import cross_entropy

    direction = -1.0 if towards else 1.0
    size = direction * STEP * epsilon / steps
    noise = torch.zeros_like(pixels)
    for _ in range(steps):
        with torch.enable_grad():
            moved = (pixels + noise).requires_grad_(True)
            loss = cross_entropy(logits(moved), target, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, moved)
        noise = (noise + size * gradient.sign()).clamp(-epsilon, epsilon)
        noise = (pixels + noise).clamp(0, 1) - pixels
    return noise


def quantise(noise: Tensor, epsilon: float) -> Tensor:
    """Pixel units → int8 in steps of ε/127."""
    import torch

    return (noise * (127 / epsilon)).round().clamp(-127, 127).to(torch.int8)


def mix(
    pixels: Tensor, noise_pos: Tensor | None, noise_neg: Tensor | None, scale: float, alpha: float, beta: float
) -> Tensor:
    """clip(x + α·N⁺ + β·N⁻) in pixel units; ``scale`` is the size of one int8 step. Noise of strength 0 may be None."""
    if alpha == 0 and beta == 0:
        return pixels
    for noise, strength in ((noise_pos, alpha), (noise_neg, beta)):
        if strength and noise is not None:
            pixels = pixels + (strength * scale) * noise.float()
    return pixels.clamp(0, 1)
