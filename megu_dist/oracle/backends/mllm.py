"""A multimodal LLM from transformers, asked by constrained scoring: one forward pass per question, no text is parsed."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import io
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megu_dist.config.registry import register
from megu_dist.config.schema import OracleSettings
from megu_dist.errors import UserError, nearest
from megu_dist.oracle import prompts
from megu_dist.oracle.base import About, Concept, Pair, Rating
from megu_dist.oracle.families import EXTRA, model_folder
from megu_dist.oracle.identity import folder_hash
from megu_dist.oracle.scoring import answer_forms, expectation

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

DTYPES = ("auto", "float32", "bfloat16", "float16")
CACHED_PREFIXES = 4  # first concepts whose key-value cache is kept
# Gray levels of the pictures in the neutral pairs: alike in one, unlike in the other, so that their mean is neither.
SHADES = ((128, 128), (0, 255))


@dataclass(kw_only=True)
class MllmSettings(OracleSettings):
    """Which model, and how it is asked; quantisation is the model folder's own."""

    path: str | None = None  # folder or hub id
    revision: str | None = None  # of a hub id
    dtype: str = "auto"  # auto: as stored | float32 | bfloat16 | float16
    device_map: str | None = None  # "auto" spreads a large model over the replica's GPUs (needs accelerate)
    trust_remote_code: bool = False  # run code that comes with the model
    prior: float = 0.5  # weight of the neutral-pair correction
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
                f"families need more packages: {EXTRA}"
            ) from None
        self.tokenizer = getattr(self.processor, "tokenizer", self.processor)
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
        self.marks = tuple(str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special)
        self.keeps = "logits_to_keep" in inspect.signature(self.model.forward).parameters
        self.priors: dict[tuple[int, int, int], Tensor] = {}
        self.prefixes: OrderedDict[tuple[str, str], tuple[Any, int]] = OrderedDict()
        self.lead = ""
        self.lead, self.digits = self._answer_form()
        # Jobs with and without pictures may share one running oracle.
        self.reuses = settings.reuse_prefix and all(self._reuse_agrees(n) for n in (max(1, settings.images), 0))

    @classmethod
    def about(cls, settings: MllmSettings) -> About:
        """The folder's content, or hub id and revision; what changes scores is part of the prompt's hash."""
        if not settings.path:
            raise UserError("oracle=mllm needs oracle.path: the folder or hub id of a multimodal model")
        if settings.dtype not in DTYPES:
            raise UserError(f"oracle.dtype={settings.dtype}: {nearest(settings.dtype, DTYPES)}")
        for key in ("prior", "min_mass"):
            if not 0 <= getattr(settings, key) <= 1:
                raise UserError(f"oracle.{key}={getattr(settings, key)}: must be between 0 and 1")
        folder = model_folder(settings.path)
        name = f"{folder.name}:{folder_hash(folder)}" if folder else f"{settings.path}@{settings.revision or 'main'}"
        if settings.device_map and importlib.util.find_spec("accelerate") is None:
            raise UserError(f"oracle.device_map needs accelerate: {EXTRA}")
        scoring = (settings.prior, settings.min_mass, settings.dtype, prompts.NEUTRAL, SHADES)
        wordings = prompts.hashes(prompts.count_wordings(), prompts.ANSWER_DIGIT, *scoring)
        return About(f"mllm:{name}", prompts=wordings, symmetric=False)

    def rate(self, pairs: list[Pair]) -> list[Rating]:
        """Expectation over digits, corrected by the neutral pair of the same wording and number of images."""
        out = []
        for pair, (log, count) in zip(pairs, self._log_probs(pairs), strict=True):
            mass = float(log.exp().sum())
            value = float(expectation(log[None], self._prior(pair), self.settings.prior)[0])
            out.append(Rating(value if mass >= self.settings.min_mass else float("nan"), count, 1))
        return out

    # --- forward passes ---------------------------------------------------------------------------------------------

    def _log_probs(self, pairs: list[Pair]) -> list[tuple[Tensor, int]]:
        """Per pair, (10,) log-probabilities of the digits and the prompt's tokens."""
        texts = [self._render(pair) for pair in pairs]
        groups: dict[Any, list[int]] = {}
        for place, (pair, text) in enumerate(zip(pairs, texts, strict=True)):
            key = (self._prefix_key(pair, text), bool(pair.second.images)) if self.reuses else None
            groups.setdefault(key, []).append(place)
        alone: dict[bool, list[int]] = {}
        jobs: list[tuple[list[int], Callable[..., tuple[Tensor, list[int]]]]] = []
        for key, places in groups.items():
            if key and (len(places) > 1 or key[0] in self.prefixes):
                jobs.append((places, self._forward_from_prefix))
                continue
            for place in places:  # a processor takes texts with images or without, not both at once
                alone.setdefault(bool(pairs[place].first.images or pairs[place].second.images), []).append(place)
        jobs += [(places, self._forward) for places in alone.values()]
        found: dict[int, tuple[Tensor, int]] = {}
        for places, forward in jobs:
            logs, tokens = forward([pairs[place] for place in places], [texts[place] for place in places])
            found.update(zip(places, zip(logs, tokens, strict=True), strict=True))
        return [found[place] for place in range(len(pairs))]

    def _forward(self, pairs: list[Pair], texts: list[str]) -> tuple[Tensor, list[int]]:
        """Whole prompts."""
        batch = self._tokenize(texts, [[*_pictures(p.first), *_pictures(p.second)] for p in pairs], True)
        found = self._next_token(batch, batch["attention_mask"])
        return found[:, self.digits].cpu(), batch["attention_mask"].sum(1).tolist()

    def _forward_from_prefix(self, pairs: list[Pair], texts: list[str]) -> tuple[Tensor, list[int]]:
        """The first concept's part once, its key-value cache then continued by every second concept."""
        import torch

        cache, past = self._prefix(pairs[0], texts[0])
        cache = copy.deepcopy(cache)
        cache.batch_repeat_interleave(len(pairs))
        batch = self._tokenize([_split(text)[1] for text in texts], [_pictures(p.second) for p in pairs], False)
        mask = batch["attention_mask"]
        before = torch.ones(len(pairs), past, dtype=mask.dtype, device=mask.device)
        batch["attention_mask"] = torch.cat([before, mask], 1)
        found = self._next_token({**batch, "past_key_values": cache}, mask)
        return found[:, self.digits].cpu(), (mask.sum(1) + past).tolist()

    def _next_token(self, batch: Any, mask: Tensor) -> Tensor:
        """(N, V): log-probabilities of what follows each row's last real token."""
        import torch

        last = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).argmax(1)
        positions, inverse = torch.unique(last, return_inverse=True)
        keep = {"logits_to_keep": positions} if self.keeps else {}
        with torch.inference_mode():
            logits = self.model(**batch, **keep, use_cache="past_key_values" in batch).logits
        rows = torch.arange(len(last), device=logits.device)
        chosen = logits[rows, (inverse if self.keeps else last).to(logits.device)]
        return chosen.float().log_softmax(-1)

    def _prefix(self, pair: Pair, text: str) -> tuple[Any, int]:
        import torch

        key = self._prefix_key(pair, text)
        if key not in self.prefixes:
            batch = self._tokenize([key[0]], [_pictures(pair.first)], True)
            keep = {"logits_to_keep": 1} if self.keeps else {}
            with torch.inference_mode():
                cache = self.model(**batch, **keep, use_cache=True).past_key_values
            self.prefixes[key] = (cache, int(batch["input_ids"].shape[1]))
            while len(self.prefixes) > CACHED_PREFIXES:
                self.prefixes.popitem(last=False)
        self.prefixes.move_to_end(key)
        return self.prefixes[key]

    @staticmethod
    def _prefix_key(pair: Pair, text: str) -> tuple[str, str]:
        return _split(text)[0], pair.first.key  # the latter for its images

    def _prior(self, pair: Pair) -> Tensor:
        """(10,) mean log-probabilities of the digits for pairs without content, with as many pictures."""
        import torch

        key = (pair.phrasing, len(pair.first.images), len(pair.second.images))
        if key not in self.priors:
            neutral = [_neutral(place, *key[1:], phrasing=key[0]) for place in range(len(prompts.NEUTRAL))]
            self.priors[key] = torch.cat([self._forward([one], [self._render(one)])[0] for one in neutral]).mean(0)
        return self.priors[key]

    def _answer_form(self) -> tuple[str, list[int]]:
        """Of the forms of a one-digit answer, the one that this model finds most likely for a neutral pair."""
        pair = _neutral(0, self.settings.images, self.settings.images)
        text = self._render(pair)
        forms = answer_forms(self.tokenizer, text)
        batch = self._tokenize([text], [[*_pictures(pair.first), *_pictures(pair.second)]], True)
        likely = self._next_token(batch, batch["attention_mask"])[0].exp()

        def mass(form: tuple[str, list[int]]) -> float:
            lead, digits = form
            space = self.tokenizer(text + lead, add_special_tokens=False)["input_ids"][-1:]
            return float(likely[space if lead else digits].sum())

        return max(forms, key=mass)

    # --- prompts ----------------------------------------------------------------------------------------------------

    def _render(self, pair: Pair) -> str:
        """The prompt's text, with the processor's placeholders where images go."""
        pair = prompts.without(pair, self.marks)
        image = {"type": "image"}
        parts: list[dict[str, str]] = [{"type": "text", "text": prompts.opening(pair, prompts.ANSWER_DIGIT)}]
        parts += [image] * len(pair.first.images)
        parts += [{"type": "text", "text": prompts.closing(pair)}]
        parts += [image] * len(pair.second.images)
        parts += [{"type": "text", "text": "\nAnswer:"}]
        if getattr(self.processor, "chat_template", None):
            messages = [{"role": "user", "content": parts}]
            text = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        else:
            placeholder = str(getattr(self.processor, "image_token", "<image>"))
            text = "".join(part.get("text", placeholder) for part in parts)
        return f"{text}{self.lead}"

    def _tokenize(self, texts: list[str], images: list[list[Image]], start: bool) -> Any:
        """``start``: the text begins the sequence, so that the tokenizer's own first token belongs there."""
        # A chat template writes the first token itself.
        special = start and not getattr(self.processor, "chat_template", None)
        given = {"images": images} if any(images) else {}
        # On the right the causal mask hides the padding and positions need no care; many processors pad on the left.
        options = {"padding": True, "padding_side": "right", "return_tensors": "pt", "add_special_tokens": special}
        batch = self.processor(text=texts, **options, **given)
        return batch.to(self.model.device, dtype=self.model.dtype) if given else batch.to(self.model.device)

    def _reuse_agrees(self, images: int) -> bool:
        """Whether continuing a cached prefix gives this model's scores: tried out on pairs of two lengths."""
        import torch

        pairs = [_neutral(place, images, images) for place in range(len(prompts.NEUTRAL))]
        pairs = [pair._replace(first=pairs[0].first) for pair in pairs]
        texts = [self._render(pair) for pair in pairs]
        try:
            for pair, text in zip(pairs, texts, strict=True):
                whole = self._tokenize([text], [[*_pictures(pair.first), *_pictures(pair.second)]], True)
                parts = [self._tokenize([part], [_pictures(concept)], start) for part, concept, start in
                         zip(_split(text), pair[:2], (True, False), strict=True)]  # fmt: skip
                if not torch.equal(whole["input_ids"], torch.cat([part["input_ids"] for part in parts], 1)):
                    return False
            expected, found = self._forward(pairs, texts)[0], self._forward_from_prefix(pairs, texts)[0]
        except Exception:  # a family whose forward does not take this: whole prompts then
            return False
        finally:
            self.prefixes.clear()
        tolerance = 1e-3 if self.model.dtype == torch.float32 else 0.15
        return bool((expected - found).abs().max() < tolerance)


def _split(text: str) -> tuple[str, str]:
    """A prompt before and from its second concept."""
    at = text.index(prompts.SECOND)
    return text[:at], text[at:]


def _neutral(place: int, first: int, second: int, phrasing: int = 0) -> Pair:
    """A pair without content, with pictures of one shade."""
    names, shades = prompts.NEUTRAL[place], SHADES[place]
    a, b = (Concept(name, "", (_picture(shade),) * count)
            for name, shade, count in zip(names, shades, (first, second), strict=True))  # fmt: skip
    return Pair(a, b, phrasing)


def _pictures(concept: Concept) -> list[Image]:
    from PIL import Image

    return [Image.open(io.BytesIO(data)).convert("RGB") for data in concept.images]


def _picture(shade: int) -> bytes:
    from PIL import Image

    sink = io.BytesIO()
    Image.new("RGB", (64, 64), (shade,) * 3).save(sink, "PNG")
    return sink.getvalue()
