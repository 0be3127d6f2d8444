"""A multimodal LLM from transformers, asked by constrained scoring: one forward pass per question, no text is parsed."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import io
import json
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megu_dist.config.registry import register
from megu_dist.config.schema import OracleSettings
from megu_dist.errors import UserError, nearest
from megu_dist.oracle import prompts
from megu_dist.oracle.base import About, Concept, Pair, Rating
from megu_dist.oracle.identity import folder_hash
from megu_dist.oracle.scoring import digit_tokens, expectation

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

DTYPES = ("auto", "float32", "bfloat16", "float16")
CACHED_PREFIXES = 4  # first concepts whose key-value cache is kept
# Families whose processors need a package beyond the base install (their own error does not name it).
NEEDS = {
    "torchvision": ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "llava_onevision", "glm4v", "smolvlm"),
    "num2words": ("smolvlm",),
}


@dataclass(kw_only=True)
class MllmSettings(OracleSettings):
    """``prior`` is the weight of the neutral-pair correction; quantisation is the model folder's own."""

    path: str | None = None  # folder or hub id
    revision: str | None = None  # of a hub id
    dtype: str = "auto"  # auto: as stored | float32 | bfloat16 | float16
    device_map: str | None = None  # "auto" spreads a large model over the replica's GPUs (needs accelerate)
    trust_remote_code: bool = False
    prior: float = 0.5
    min_mass: float = 0.01  # probability that must lie on digits; below, the pair has no answer
    reuse_prefix: bool = True  # key-value cache of the shared prompt, where the model gives the same scores with it
    images: int = 2
    shortlist: int = 32
    max_batch_size: int = 16
    pairs_per_request: int = 8


@register("oracle", "mllm", MllmSettings)
class MllmOracle:
    """A multimodal LLM (oracle.path: folder or hub id of any AutoModelForImageTextToText), by constrained scoring."""

    def __init__(self, settings: MllmSettings) -> None:
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        from megu_dist.engine.base import set_threads

        set_threads(0, settings.num_replicas)
        self.settings = settings
        where: dict[str, Any] = {"revision": settings.revision, "trust_remote_code": settings.trust_remote_code}
        try:
            self.processor = AutoProcessor.from_pretrained(settings.path, **where)
        except Exception as error:  # many types; a processor's own word on what it lacks is kept
            raise UserError(
                f"oracle.path={settings.path}: its processor does not load ({type(error).__name__}: {error}); some "
                "families need more packages: pip install 'megu-dist[oracle]'"
            ) from None
        self.tokenizer = getattr(self.processor, "tokenizer", self.processor)
        self.tokenizer.padding_side = "right"  # the causal mask then hides the padding, and positions need no care
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        model = AutoModelForImageTextToText.from_pretrained(
            settings.path,
            dtype=settings.dtype if settings.dtype == "auto" else getattr(torch, settings.dtype),
            device_map=settings.device_map,
            use_safetensors=True,
            **where,
        )
        if settings.device_map is None:
            model = model.to("cuda" if settings.num_gpus > 0 and torch.cuda.is_available() else "cpu")
        self.model = model.eval()
        self.keeps = "logits_to_keep" in inspect.signature(self.model.forward).parameters
        probe = Pair(Concept("N/A"), Concept("N/A"))
        self.digits = digit_tokens(self.tokenizer, self._render(probe))
        self.priors: dict[tuple[int, int, int], Tensor] = {}
        self.prefixes: OrderedDict[str, tuple[Any, int]] = OrderedDict()
        self.reuses = settings.reuse_prefix and self._reuse_agrees()

    @classmethod
    def about(cls, settings: MllmSettings) -> About:
        """The folder's content, or hub id and revision; what changes scores is part of the prompt's hash."""
        if not settings.path:
            raise UserError("oracle=mllm needs oracle.path: the folder or hub id of a multimodal model")
        if settings.dtype not in DTYPES:
            raise UserError(f"oracle.dtype={settings.dtype}: {nearest(settings.dtype, DTYPES)}")
        folder = Path(settings.path).expanduser()
        if folder.is_dir():
            _check_folder(folder, settings)
            name = f"{folder.name}:{folder_hash(folder)}"
        elif settings.path.startswith((".", "/", "~")):
            raise UserError(f"oracle.path={settings.path}: no such folder")
        else:
            name = f"{settings.path}@{settings.revision or 'main'}"
        if settings.device_map and importlib.util.find_spec("accelerate") is None:
            raise UserError("oracle.device_map needs accelerate: pip install 'megu-dist[oracle]'")
        scoring = (settings.prior, settings.min_mass, settings.dtype)
        wordings = prompts.hashes(prompts.count_wordings(), prompts.ANSWER_DIGIT, *scoring)
        return About(f"mllm:{name}", prompts=wordings, symmetric=False)

    def rate(self, pairs: list[Pair]) -> list[Rating]:
        """Expectation over digits, corrected by the neutral pair of the same wording and number of images."""
        logs, tokens = self._log_probs(pairs)
        out = []
        for pair, log, count in zip(pairs, logs, tokens, strict=True):
            mass = float(log.exp().sum())
            value = float(expectation(log[None], self._prior(pair), self.settings.prior)[0])
            out.append(Rating(value if mass >= self.settings.min_mass else float("nan"), count, 1))
        return out

    # --- forward passes ---------------------------------------------------------------------------------------------

    def _log_probs(self, pairs: list[Pair]) -> tuple[list[Tensor], list[int]]:
        """(10,) log-probabilities of the digits and the prompt's tokens, per pair."""
        logs: dict[int, Tensor] = {}
        tokens: dict[int, int] = {}
        groups: dict[tuple[Any, ...], list[int]] = {}
        for place, pair in enumerate(pairs):
            key = (pair.phrasing, pair.first.key, bool(pair.second.images)) if self.reuses else ()
            groups.setdefault(key, []).append(place)
        alone: dict[bool, list[int]] = {}
        for key, places in groups.items():
            if key and (len(places) > 1 or self._prefix_key(pairs[places[0]]) in self.prefixes):
                self._score(logs, tokens, places, self._forward_from_prefix([pairs[p] for p in places]))
            else:
                for place in places:  # a processor takes texts with images or without, not both at once
                    alone.setdefault(bool(pairs[place].first.images or pairs[place].second.images), []).append(place)
        for places in alone.values():
            self._score(logs, tokens, places, self._forward([pairs[p] for p in places]))
        return [logs[i] for i in range(len(pairs))], [tokens[i] for i in range(len(pairs))]

    @staticmethod
    def _score(
        logs: dict[int, Tensor], tokens: dict[int, int], places: list[int], found: tuple[Tensor, list[int]]
    ) -> None:
        for row, place in enumerate(places):
            logs[place], tokens[place] = found[0][row], found[1][row]

    def _forward(self, pairs: list[Pair]) -> tuple[Tensor, list[int]]:
        """Whole prompts, padded on the right."""
        batch = self._tokenize([self._render(pair) for pair in pairs],
                               [[*_pictures(p.first), *_pictures(p.second)] for p in pairs], True)  # fmt: skip
        lengths = batch["attention_mask"].sum(1)
        return self._digits_at(batch, lengths - 1), lengths.tolist()

    def _forward_from_prefix(self, pairs: list[Pair]) -> tuple[Tensor, list[int]]:
        """The first concept's part once, its key-value cache then continued by every second concept."""
        import torch

        cache, past = self._prefix(pairs[0])
        cache = copy.deepcopy(cache)
        cache.batch_repeat_interleave(len(pairs))
        batch = self._tokenize([self._split(pair)[1] for pair in pairs], [_pictures(p.second) for p in pairs], False)
        lengths = batch["attention_mask"].sum(1)
        before = torch.ones(len(pairs), past, dtype=batch["attention_mask"].dtype, device=lengths.device)
        batch["attention_mask"] = torch.cat([before, batch["attention_mask"]], 1)
        found = self._digits_at({**batch, "past_key_values": cache}, lengths - 1)
        return found, (lengths + past).tolist()

    def _digits_at(self, batch: Any, last: Tensor) -> Tensor:
        """(N, 10): log-probabilities of the digits after each row's last real token."""
        import torch

        positions, inverse = torch.unique(last, return_inverse=True)
        keep = {"logits_to_keep": positions} if self.keeps else {}
        with torch.inference_mode():
            logits = self.model(**batch, **keep, use_cache="past_key_values" in batch).logits
        rows = torch.arange(len(last), device=logits.device)
        chosen = logits[rows, (inverse if self.keeps else last).to(logits.device)]
        return chosen.float().log_softmax(-1)[:, self.digits].cpu()

    def _prefix(self, pair: Pair) -> tuple[Any, int]:
        import torch

        key = self._prefix_key(pair)
        if key not in self.prefixes:
            batch = self._tokenize([self._split(pair)[0]], [_pictures(pair.first)], True)
            with torch.inference_mode():
                cache = self.model(**batch, use_cache=True).past_key_values
            self.prefixes[key] = (cache, int(batch["input_ids"].shape[1]))
            while len(self.prefixes) > CACHED_PREFIXES:
                self.prefixes.popitem(last=False)
        self.prefixes.move_to_end(key)
        return self.prefixes[key]

    @staticmethod
    def _prefix_key(pair: Pair) -> str:
        return f"{pair.phrasing}:{pair.first.key}"

    def _prior(self, pair: Pair) -> Tensor:
        """(10,) mean log-probabilities of the digits for pairs without content, as many gray images in them."""
        import torch

        key = (pair.phrasing, len(pair.first.images), len(pair.second.images))
        if key not in self.priors:
            neutral = [
                Pair(Concept(a, "", (GRAY,) * key[1]), Concept(b, "", (GRAY,) * key[2]), key[0])
                for a, b in prompts.NEUTRAL
            ]
            self.priors[key] = torch.stack([self._forward([one])[0][0] for one in neutral]).mean(0)
        return self.priors[key]

    # --- prompts ----------------------------------------------------------------------------------------------------

    def _render(self, pair: Pair) -> str:
        """The prompt's text, with the processor's placeholders where images go."""
        image = {"type": "image"}
        parts: list[dict[str, str]] = [{"type": "text", "text": prompts.opening(pair, prompts.ANSWER_DIGIT)}]
        parts += [image] * len(pair.first.images)
        parts += [{"type": "text", "text": prompts.closing(pair)}]
        parts += [image] * len(pair.second.images)
        parts += [{"type": "text", "text": "\nAnswer:"}]
        if getattr(self.processor, "chat_template", None):
            messages = [{"role": "user", "content": parts}]
            return str(self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
        placeholder = str(getattr(self.processor, "image_token", "<image>"))
        return "".join(part.get("text", placeholder) for part in parts)

    def _split(self, pair: Pair) -> tuple[str, str]:
        text = self._render(pair)
        at = text.index(prompts.SECOND)
        return text[:at], text[at:]

    def _tokenize(self, texts: list[str], images: list[list[Image]], start: bool) -> Any:
        """``start``: the text begins the sequence, so that the tokenizer's own first token belongs there."""
        # A chat template writes the first token itself.
        special = start and not getattr(self.processor, "chat_template", None)
        given = {"images": images} if any(images) else {}
        batch = self.processor(text=texts, padding=True, return_tensors="pt", add_special_tokens=special, **given)
        return batch.to(self.model.device, dtype=self.model.dtype) if given else batch.to(self.model.device)

    def _reuse_agrees(self) -> bool:
        """Whether continuing a cached prefix gives this model's scores: tried out, with images and pairs of two lengths."""
        import torch

        images = (GRAY,) * self.settings.images
        pairs = [Pair(Concept("N/A", "", images), Concept(name, "", images)) for name in ("cat", "a much longer name")]
        try:
            for pair in pairs:
                whole = self._tokenize([self._render(pair)], [[*_pictures(pair.first), *_pictures(pair.second)]], True)
                parts = [self._tokenize([text], [_pictures(concept)], start) for text, concept, start in
                         zip(self._split(pair), pair[:2], (True, False), strict=True)]  # fmt: skip
                if not torch.equal(whole["input_ids"], torch.cat([part["input_ids"] for part in parts], 1)):
                    return False
            expected, found = self._forward(pairs)[0], self._forward_from_prefix(pairs)[0]
        except Exception:  # a family whose forward does not take this: whole prompts then
            return False
        finally:
            self.prefixes.clear()
        tolerance = 1e-3 if self.model.dtype == torch.float32 else 0.15
        return bool((expected - found).abs().max() < tolerance)


def _pictures(concept: Concept) -> list[Image]:
    from PIL import Image

    return [Image.open(io.BytesIO(data)).convert("RGB") for data in concept.images]


def _gray() -> bytes:
    from PIL import Image

    sink = io.BytesIO()
    Image.new("RGB", (64, 64), (128, 128, 128)).save(sink, "PNG")
    return sink.getvalue()


GRAY = _gray()


def _check_folder(folder: Path, settings: MllmSettings) -> None:
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        raise UserError(
            f"oracle.path={settings.path}: no readable config.json there, so it is not a model folder"
        ) from None
    kind = str(config.get("model_type"))
    missing = [name for name, kinds in NEEDS.items() if kind in kinds and importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"oracle.path={settings.path}: models of type {kind} need {' and '.join(missing)}: "
            "pip install 'megu-dist[oracle]'"
        )
