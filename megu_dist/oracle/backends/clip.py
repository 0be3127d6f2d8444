"""Contrastive image–text models (CLIP, Radford et al. 2021; SigLIP, Zhai et al. 2023): similarities mapped to ratings.

A similarity is placed between two anchors of the same kind: a neutral text (0) and the concept's own name (10). Raw
cosines cannot be used: unrelated pairs of the two modalities differ by a few hundredths around a model's own offset.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megu_dist.config.registry import register
from megu_dist.config.schema import OracleSettings
from megu_dist.errors import UserError
from megu_dist.oracle.base import MAX_RATING, About, Concept, Pair, Rating
from megu_dist.oracle.families import model_folder
from megu_dist.oracle.identity import folder_hash

if TYPE_CHECKING:
    from torch import Tensor

NEUTRAL = "a photo"


@dataclass(kw_only=True)
class ClipSettings(OracleSettings):
    """Which model, and how names and images are weighed."""

    path: str | None = None  # folder or hub id of a CLIP or SigLIP model
    template: str = "a photo of a {}"  # the phrase that a class name is put into
    image_weight: float = 0.5  # share of the image–text similarity where there are images; the rest is text–text
    images: int = 4
    pairs_per_request: int = 32


@register("oracle", "clip", ClipSettings)
class ClipOracle:
    """Image–text and text–text similarity of a CLIP or SigLIP model (oracle.path: folder or hub id)."""

    def __init__(self, settings: ClipSettings) -> None:
        import torch
        from transformers import AutoModel, AutoProcessor

        from megu_dist.engine.base import set_threads

        set_threads(0, settings.num_replicas)
        self.settings = settings
        self.processor = AutoProcessor.from_pretrained(settings.path)
        self.device = torch.device("cuda" if settings.num_gpus > 0 and torch.cuda.is_available() else "cpu")
        self.model = AutoModel.from_pretrained(settings.path, use_safetensors=True).eval().to(self.device)
        self.padding = "max_length" if "siglip" in self.model.config.model_type else True  # as SigLIP was trained
        positions = self.model.config.text_config.max_position_embeddings
        self.length = min(self.processor.tokenizer.model_max_length, positions)  # not every tokenizer knows its limit
        self.texts: dict[str, Tensor] = {}
        self.pictures: dict[str, Tensor | None] = {}

    @classmethod
    def about(cls, settings: ClipSettings) -> About:
        """The folder's content, or the hub id as it stands."""
        if not settings.path:
            raise UserError("oracle=clip needs oracle.path: the folder or hub id of a CLIP or SigLIP model")
        if not 0 <= settings.image_weight <= 1:
            raise UserError(f"oracle.image_weight={settings.image_weight}: must be between 0 and 1")
        if settings.template.count("{}") != 1:
            raise UserError(f"oracle.template={settings.template!r}: must hold {{}} once, where the class name goes")
        folder = model_folder(settings.path)
        name = f"{folder.name}:{folder_hash(folder)}" if folder else settings.path
        return About(f"clip:{name}", prompts=(f"{settings.template}|{settings.image_weight:g}",))

    def rate(self, pairs: list[Pair]) -> list[Rating]:
        """The mean of both directions; each 10 · (s - neutral) / (own - neutral), cut to [0, 10]."""
        self._embed_texts([NEUTRAL, *(self._text(c) for pair in pairs for c in pair[:2])])
        for concept in {c.key: c for pair in pairs for c in pair[:2]}.values():
            self._embed_images(concept)
        return [Rating((self._one(p.first, p.second) + self._one(p.second, p.first)) / 2) for p in pairs]

    def _one(self, a: Concept, b: Concept) -> float:
        own, other, neutral = (self.texts[t] for t in (self._text(a), self._text(b), NEUTRAL))
        value = _between(float(own @ other), float(own @ neutral), 1.0) or 0.0
        picture = self.pictures[a.key]
        seen = None if picture is None else _between(*(float(picture @ text) for text in (other, neutral, own)))
        if seen is None:
            return value
        return (1 - self.settings.image_weight) * value + self.settings.image_weight * seen

    def _text(self, concept: Concept) -> str:
        name = concept.name.replace("_", " ").encode(errors="replace").decode()  # tokenizers refuse lone surrogates
        return self.settings.template.replace("{}", name)

    def _embed_texts(self, texts: list[str]) -> None:
        import torch

        new = sorted(set(texts) - self.texts.keys())
        if not new:
            return
        cut = {"padding": self.padding, "truncation": True, "max_length": self.length}
        batch = self.processor(text=new, return_tensors="pt", **cut).to(self.device)
        with torch.inference_mode():
            vectors = _normalised(self.model.get_text_features(**batch))
        self.texts.update(zip(new, vectors, strict=True))

    def _embed_images(self, concept: Concept) -> None:
        import torch
        from PIL import Image

        if concept.key in self.pictures:
            return
        if not concept.images or self.settings.image_weight == 0:
            self.pictures[concept.key] = None
            return
        images = [Image.open(io.BytesIO(data)).convert("RGB") for data in concept.images]
        batch = self.processor(images=images, return_tensors="pt").to(self.device)
        with torch.inference_mode():
            vectors = _normalised(self.model.get_image_features(**batch))
        self.pictures[concept.key] = _normalised(vectors.mean(0, keepdim=True))[0]


def _normalised(features: Any) -> Tensor:
    """(N, D) unit vectors; newer transformers wrap the features in an output object."""
    import torch

    return torch.nn.functional.normalize(getattr(features, "pooler_output", features).float(), dim=-1)


def _between(value: float, low: float, high: float) -> float | None:
    if high - low < 1e-6:  # the model cannot tell the concept from no concept, so this says nothing about others
        return None
    return MAX_RATING * min(1.0, max(0.0, (value - low) / (high - low)))
