"""Training on retained rows alone: the original model (nothing excluded) and the retrained reference θ_r."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from megu_dist.config.registry import register
from megu_dist.methods.base import Space
from megu_dist.methods.finetune import Finetune, FinetuneSettings


@dataclass(kw_only=True)
class RetrainSettings(FinetuneSettings):
    """Nothing to set: ``train.*`` says it all."""


@register("method", "retrain", RetrainSettings)
class Retrain(Finetune):
    """Trains from scratch on the retain set: exact, and as slow as training is."""

    search: ClassVar[Space] = {}
