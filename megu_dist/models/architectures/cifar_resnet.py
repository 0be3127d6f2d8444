"""The small residual network, with random weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from megu_dist.config.registry import register
from megu_dist.config.schema import ModelSettings
from megu_dist.models.preprocess import Preprocess

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(kw_only=True)
class CifarResNetSettings(ModelSettings):
    """See :class:`megu_dist.models.cifar_resnet_config.CifarResNetConfig`."""

    width: int = 64  # channels of the first stage; each next stage has twice as many
    stage_blocks: list[int] = field(default_factory=lambda: [2, 2, 2, 2])  # basic blocks per stage
    stem_stride: int = 1  # 2 halves the resolution at once: about three times faster on a CPU
    num_channels: int = 3  # 1: images are turned gray
    image_size: int = 32  # pixels; images are resized to it
    mean: list[float] = field(default_factory=lambda: [0.5])  # of pixel values, for all channels or for each
    std: list[float] = field(default_factory=lambda: [0.25])  # likewise


@register("model", "cifar_resnet", CifarResNetSettings)
class CifarResNet:
    """CIFAR-style ResNet of any width and depth for small images."""

    def __init__(self, settings: CifarResNetSettings) -> None:
        self.settings = settings

    def preprocess(self) -> Preprocess:
        """Resize to ``image_size``; one mean and std for all channels, or one each."""
        s = self.settings
        mean, std = (tuple(v * s.num_channels if len(v) == 1 else v) for v in (s.mean, s.std))
        return Preprocess(s.image_size, s.image_size, s.num_channels, mean, std)

    def build(self, class_names: list[str]) -> PreTrainedModel:
        """A new network; torch's global seed decides the weights."""
        from megu_dist.models.cifar_resnet import CifarResNetForImageClassification
        from megu_dist.models.cifar_resnet_config import CifarResNetConfig

        s = self.settings
        config = CifarResNetConfig(
            width=s.width,
            stage_blocks=s.stage_blocks,
            stem_stride=s.stem_stride,
            num_channels=s.num_channels,
            image_size=s.image_size,
            id2label=dict(enumerate(class_names)),
            label2id={name: i for i, name in enumerate(class_names)},
        )
        return CifarResNetForImageClassification(config)
