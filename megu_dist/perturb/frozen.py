"""The frozen original model as the perturb stage's actors use it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from megu_dist.config.schema import PerturbSettings

if TYPE_CHECKING:
    from torch import Tensor


class Frozen:
    """The original model on its device, for inference and for gradients by its input."""

    def __init__(self, model_folder: str, settings: PerturbSettings, actors: int) -> None:
        import torch

        import megu_dist  # noqa: F401  (registers the CIFAR ResNet)
        from megu_dist.engine.base import set_threads
        from megu_dist.models.checkpoint import open_checkpoint

        set_threads(0, actors)
        checkpoint = open_checkpoint(model_folder)
        self.device = torch.device("cuda" if settings.num_gpus > 0 and torch.cuda.is_available() else "cpu")
        self.model = checkpoint.load().requires_grad_(False).to(self.device, memory_format=torch.channels_last)
        self.preprocess, self.precision = checkpoint.preprocess, settings.precision

    def pixels(self, images: np.ndarray) -> Tensor:
        """uint8 (N, C, H, W) → float32 in [0, 1] on the device."""
        import torch

        return torch.from_numpy(np.array(images)).to(self.device).float() / 255

    def logits(self, pixels: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] → (N, classes) float32."""
        from megu_dist.engine.base import autocast

        with autocast(self.precision, self.device):
            return self.model(pixel_values=self.preprocess.normalise(pixels)).logits.float()
