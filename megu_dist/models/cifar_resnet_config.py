"""Configuration of the small residual network for images of 8 to 64 pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from megu_dist.models.autoclass import MODEL_TYPE


class CifarResNetConfig(PreTrainedConfig):
    """A CIFAR-style ResNet (He et al. 2016, §4.2): a 3×3 stem without max-pooling, then stages of basic blocks.

    ``stage_blocks`` gives the number of basic blocks per stage; stage k has ``width``·2^k channels and halves the
    resolution when k > 0. ``[2, 2, 2, 2]`` with ``width=64`` is the usual CIFAR ResNet-18. ``stem_stride=2`` halves
    the resolution at once, which makes training about three times faster on a CPU.
    """

    model_type = MODEL_TYPE

    def __init__(
        self,
        width: int = 64,
        stage_blocks: Sequence[int] = (2, 2, 2, 2),
        stem_stride: int = 1,
        num_channels: int = 3,
        image_size: int = 32,
        **kwargs: Any,
    ) -> None:
        self.width = width
        self.stage_blocks = list(stage_blocks)
        self.stem_stride = stem_stride
        self.num_channels = num_channels
        self.image_size = image_size
        super().__init__(**kwargs)
