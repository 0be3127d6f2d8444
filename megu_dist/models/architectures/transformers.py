"""Any image classifier that transformers knows: ``model.path`` loads one, ``model.model_type`` builds a new one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from megu_dist.config.registry import register
from megu_dist.config.schema import ModelSettings
from megu_dist.errors import UserError, nearest
from megu_dist.models.preprocess import Preprocess

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(kw_only=True)
class TransformersSettings(ModelSettings):
    """``path`` alone is enough for a trained model; the rest describes one that is to be trained."""

    model_type: str | None = None  # vit, resnet, convnext, swin, …
    config: dict[str, Any] = field(
        default_factory=dict
    )  # arguments of the architecture's own configuration class (hidden_size, depths, …)
    num_channels: int = 3  # 1: images are turned gray
    image_size: int = 224  # pixels; images are resized to it
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])  # of pixel values, for each channel
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])  # likewise


@register("model", "transformers", TransformersSettings)
class TransformersModel:
    """Any transformers image classifier (ResNet, ViT, ConvNeXt, Swin, …)."""

    def __init__(self, settings: TransformersSettings) -> None:
        self.settings = settings

    def preprocess(self) -> Preprocess:
        """Resize to ``image_size``, normalise with ``mean`` and ``std``."""
        s = self.settings
        mean, std = (tuple(v * s.num_channels if len(v) == 1 else v) for v in (s.mean, s.std))
        if len(mean) != s.num_channels or len(std) != s.num_channels:
            raise UserError(f"model.mean and model.std need {s.num_channels} values each (model.num_channels), or one")
        return Preprocess(s.image_size, s.image_size, s.num_channels, mean, std)

    def build(self, class_names: list[str]) -> PreTrainedModel:
        """A new network with the architecture's own initialisation. Raises :class:`UserError` for unknown types."""
        from transformers import AutoConfig, AutoModelForImageClassification
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as KNOWN

        s = self.settings
        if s.model_type not in KNOWN:
            raise UserError(f"model.model_type={s.model_type}: {nearest(s.model_type, KNOWN)}")
        config = AutoConfig.for_model(
            s.model_type,
            num_channels=s.num_channels,
            image_size=s.image_size,
            id2label=dict(enumerate(class_names)),
            label2id={name: i for i, name in enumerate(class_names)},
            **s.config,
        )
        return AutoModelForImageClassification.from_config(config)
