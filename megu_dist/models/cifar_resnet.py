"""The small residual network as a ``PreTrainedModel``: what ``megu`` writes loads with transformers' Auto classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention
from transformers.modeling_utils import PreTrainedModel

from megu_dist.models.cifar_resnet_config import CifarResNetConfig


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with a projected shortcut where the shape changes (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        same = stride == 1 and inputs == outputs
        self.shortcut = (
            nn.Identity() if same else nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) → (N, outputs, H/stride, W/stride)."""
        y = F.relu(self.norm1(self.conv1(x)))
        # A 1×1 convolution with a stride takes every other pixel. Left to oneDNN 3.12, that writes past its memory where
        # images are channels-last, channels fewer than 16 and threads more than one.
        kept = x[..., :: self.stride, :: self.stride]
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(kept))


class CifarResNetForImageClassification(PreTrainedModel):
    """Stem, stages of :class:`BasicBlock`, global average pooling, one linear layer."""

    config_class = CifarResNetConfig
    base_model_prefix = "resnet"
    main_input_name = "pixel_values"

    def __init__(self, config: CifarResNetConfig) -> None:
        super().__init__(config)
        width = config.width
        self.stem = nn.Sequential(
            nn.Conv2d(config.num_channels, width, 3, config.stem_stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        blocks: list[nn.Module] = []
        inputs = width
        for stage, count in enumerate(config.stage_blocks):
            outputs = width * 2**stage
            for block in range(count):
                blocks.append(BasicBlock(inputs, outputs, 2 if stage > 0 and block == 0 else 1))
                inputs = outputs
        self.stages = nn.Sequential(*blocks)
        self.classifier = nn.Linear(inputs, config.num_labels)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            # Also after from_pretrained, which leaves buffers that a checkpoint lacks uninitialised.
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
            module.reset_running_stats()

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, **_: Any
    ) -> ImageClassifierOutputWithNoAttention:
        """``pixel_values`` (N, num_channels, H, W), normalised → logits (N, num_labels)."""
        features = self.stages(self.stem(pixel_values)).mean(dim=(2, 3))
        logits = self.classifier(features)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)
