"""Any OpenAI-compatible chat endpoint: vLLM, ``ray.serve.llm``, hosted services. Images travel as data URLs.

The key is read from the environment of the replica (``oracle.api_key_env``) and stands in no setting, artefact or log.
"""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import json
import math
import os
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import ParseResult, urlparse

from megu_dist.config.registry import register
from megu_dist.config.schema import OracleSettings
from megu_dist.errors import UserError, nearest
from megu_dist.oracle import prompts
from megu_dist.oracle.base import MAX_RATING, About, Concept, Pair, Rating

MODES = ("auto", "logprobs", "json")
MIN_MASS = 0.5  # of the answer's probability that must lie on digits
MESSAGE_LIMIT = 300  # characters of what an endpoint says about an error
DEFAULT_URL = "https://api.openai.com/v1"
DIGIT_FORM: dict[str, Any] = {"max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": 20}
PLAIN_FORM: dict[str, Any] = {"max_tokens": 16, "temperature": 0}
# Tried in turn until the endpoint takes one: some know no response_format, some models take none of the others.
JSON_FORMS: tuple[dict[str, Any], ...] = (PLAIN_FORM | {"response_format": {"type": "json_object"}}, PLAIN_FORM, {})


class _Refused(Exception):
    """The endpoint takes the question in this form for a bad one (status 400 or 422)."""


@dataclass(kw_only=True)
class OpenAISettings(OracleSettings):
    """Which endpoint, and how it is asked."""

    model: str | None = None  # name of the model at the endpoint
    base_url: str = DEFAULT_URL  # of the endpoint
    api_key_env: str = "OPENAI_API_KEY"  # the variable that holds the key; the key itself is never a setting
    mode: str = (
        "auto"  # logprobs: expectation over one-digit answers | json: strict JSON answer | auto: logprobs where offered
    )
    concurrency: int = 8  # requests open at the endpoint, per replica
    retries: int = 5  # of a request that failed, was limited or stalled; exponential back-off with jitter
    request_timeout_s: float = 60.0  # for one request at the endpoint
    attempts: int = 3  # at an answer that can be read
    images: int = 2
    shortlist: int = 32
    pairs_per_request: int = 1
    max_batch_size: int = 16  # a replica holds twice as many; what is open or waits there is lost with it
    num_cpus: float = 0.5


@register("oracle", "openai", OpenAISettings)
class OpenAIOracle:
    """An OpenAI-compatible multimodal endpoint (oracle.base_url, oracle.model); needs megu-dist[oracle]."""

    def __init__(self, settings: OpenAISettings) -> None:
        from openai import AsyncOpenAI

        self.settings = settings
        self.key = os.environ.get(settings.api_key_env, "").strip()
        self.client = AsyncOpenAI(
            api_key=self.key or "none",
            base_url=settings.base_url,
            max_retries=settings.retries,
            timeout=settings.request_timeout_s,
        )
        self.limit = asyncio.Semaphore(settings.concurrency)
        # What has been learnt of the endpoint so far:
        self.logprobs = settings.mode != "json"  # whether it offers them, as far as is known
        self.json_form, self.json_taken = 0, False  # place in JSON_FORMS; whether that one has been taken
        self.answered = False

    @classmethod
    def about(cls, settings: OpenAISettings) -> About:
        """Model and host; both answer forms are part of the prompt's hash."""
        if importlib.util.find_spec("openai") is None:
            raise UserError("`oracle=openai` needs the package openai: pip install 'megu-dist[oracle]'")
        if not settings.model:
            raise UserError("oracle.model is not set: name the model that the endpoint serves")
        if settings.mode not in MODES:
            raise UserError(f"oracle.mode={settings.mode}: {nearest(settings.mode, MODES)}")
        url = _address(settings.base_url)
        if not re.fullmatch(r"[A-Za-z_]\w*", settings.api_key_env, re.ASCII):
            raise UserError(
                "oracle.api_key_env must be the name of an environment variable that holds the key, as in "
                "OPENAI_API_KEY; "
                "never the key itself"
            )
        held = 2 * max(1, settings.max_batch_size // settings.pairs_per_request) * settings.pairs_per_request
        if settings.concurrency > held:
            raise UserError(
                f"oracle.concurrency={settings.concurrency}: a replica holds {held} pairs at a time; set "
                f"oracle.max_batch_size={-(-settings.concurrency // 2)}, too"
            )
        if settings.base_url == DEFAULT_URL and not os.environ.get(settings.api_key_env):
            raise UserError(f"the environment variable {settings.api_key_env} is not set: it must hold the API key")
        wordings = prompts.hashes(prompts.count_wordings(), prompts.ANSWER_DIGIT + prompts.ANSWER_JSON, settings.mode)
        return About(f"openai:{settings.model}@{url.netloc}{url.path}", prompts=wordings, symmetric=False)

    async def rate(self, pairs: list[Pair]) -> list[Rating]:
        """Answers are awaited together, at most ``concurrency`` at a time over all requests of the replica."""
        return list(await asyncio.gather(*(self._one(pair) for pair in pairs)))

    async def _one(self, pair: Pair) -> Rating:
        spent = [0, 0]
        for attempt in range(self.settings.attempts):
            async with self.limit:
                value = await self._attempt(pair, spent, attempt)
            if value is not None:
                return Rating(value, *spent)
        return Rating(float("nan"), *spent)

    async def _attempt(self, pair: Pair, spent: list[int], attempt: int) -> float | None:
        """One answer. In ``auto``, JSON where there are no log-probabilities, or where the first ones were no "
        "digits."""
        auto = self.settings.mode == "auto"
        if self.logprobs and not (auto and attempt):
            value = await self._by_digit(pair, spent)
            if value is not None or self.logprobs:
                return value
        return await self._by_json(pair, spent)

    async def _by_digit(self, pair: Pair, spent: list[int]) -> float | None:
        """Expectation over digits; None, and ``self.logprobs`` unset, where the endpoint has no log-probabilities."""
        try:
            reply = await self._send(pair, prompts.ANSWER_DIGIT, spent, DIGIT_FORM)
        except _Refused as refused:
            if not self.answered:
                self._without_logprobs(str(refused))
            return None
        choice = _choice(reply)
        if choice is not None and getattr(choice, "logprobs", None) is None:
            self._without_logprobs("its answer holds none")
            return None
        try:
            mass: dict[int, float] = {}
            for item in choice.logprobs.content[0].top_logprobs:
                token = item.token.strip()
                if token in "0123456789" and len(token) == 1:
                    mass[int(token)] = mass.get(int(token), 0.0) + math.exp(item.logprob)
        except (AttributeError, IndexError, TypeError, OverflowError):
            return None
        total = sum(mass.values())
        if not MIN_MASS <= total < math.inf:  # no digit, or no number
            return None
        return MAX_RATING / 9 * sum(digit * p for digit, p in mass.items()) / total

    def _without_logprobs(self, reason: str) -> None:
        if self.settings.mode == "logprobs":
            raise UserError(f"{self._where} gives no log-probabilities ({reason}): use oracle.mode=auto or json")
        self.logprobs = False

    async def _by_json(self, pair: Pair, spent: list[int]) -> float | None:
        """A strict {"rating": N} with N in [0, 10]; None for anything else."""
        reason = ""
        for form in range(self.json_form, len(JSON_FORMS)):
            try:
                reply = await self._send(pair, prompts.ANSWER_JSON, spent, JSON_FORMS[form])
            except _Refused as refused:
                if self.json_taken and form >= self.json_form:  # not the form, then, but what is asked about
                    return None
                reason = str(refused)
                continue
            self.json_form, self.json_taken = max(form, self.json_form), True
            return _strict(reply)
        if self.answered:
            return None
        raise UserError(
            f"{self._where} refuses every question: {reason}; use another oracle.model, or fewer oracle.images"
        )

    @property
    def _where(self) -> str:
        return f"{self.settings.base_url} (oracle.model={self.settings.model})"

    async def _send(self, pair: Pair, answer: str, spent: list[int], form: dict[str, Any]) -> Any:
        """The reply, None where it is no JSON; raises :class:`UserError` for what asking again does not mend."""
        from openai import APIConnectionError, APIStatusError

        content: list[Any] = [_text(prompts.opening(pair, answer)), *_images(pair.first)]
        content += [_text(prompts.closing(pair)), *_images(pair.second)]
        messages: list[Any] = [{"role": "user", "content": content}]
        tries = self.settings.retries + 1
        try:
            reply = await self.client.chat.completions.create(model=str(self.settings.model), messages=messages, **form)
        except APIConnectionError as error:  # timeouts, too
            raise UserError(
                f"{self._where} did not answer {tries} times: {error}; check oracle.base_url, or set "
                "oracle.request_timeout_s higher"
            ) from None
        except APIStatusError as error:
            raise self._status(error.status_code, self._told(error), tries) from None
        except ValueError:  # a body that is no JSON at all
            return None
        self.answered |= _choice(reply) is not None
        usage = getattr(reply, "usage", None)
        for place, name in enumerate(("prompt_tokens", "completion_tokens")):
            count = getattr(usage, name, None)
            spent[place] += count if isinstance(count, int) else 0
        return reply

    def _status(self, status: int, told: str, tries: int) -> Exception:
        """The exception for an error status that retries did not mend."""
        if status in (400, 422):
            return _Refused(told)
        if status in (401, 403):
            variable = f"the environment variable {self.settings.api_key_env}"
            what = f"refused the key in {variable}" if self.key else f"wants a key, and {variable} is not set"
            return UserError(f"{self._where} {what}: export one that the endpoint takes")
        if status == 404:
            return UserError(
                f"{self._where}: the endpoint knows no such model or path; check oracle.model and "
                "oracle.base_url (most end in /v1)"
            )
        often = f" {tries} times" if status in (408, 409, 429) or status >= 500 else ""
        return UserError(
            f"{self._where} answered with status {status}{often}: {told}; what was rated is kept, run the same "
            "command again"
        )

    def _told(self, error: Any) -> str:
        """What the endpoint says about it, in short; it may quote the question's images, or the key."""
        told = error.body.get("message") if isinstance(error.body, dict) else error.body
        text = " ".join(str(told or error).split())
        text = re.sub(r"data:image/[^\s'\"]*", "data:image/…", text)
        return (text.replace(self.key, "…") if self.key else text)[:MESSAGE_LIMIT]


def _address(text: str) -> ParseResult:
    """The parsed ``oracle.base_url``. Raises :class:`UserError`, which does not show what may be a key."""
    try:
        url = urlparse(text)
        usable = url.port != 0 and url.scheme in ("http", "https") and bool(url.hostname)
    except ValueError:
        raise UserError(f"oracle.base_url is no address: it must look like {DEFAULT_URL}") from None
    if url.username or url.password or url.query or url.fragment:
        raise UserError(
            "oracle.base_url holds a user name, a password or a query (?…): put the key into an environment variable "
            f"and name that in oracle.api_key_env; an address looks like {DEFAULT_URL}"
        )
    if not usable:
        raise UserError(f"oracle.base_url={text}: must be an http(s) address, as in {DEFAULT_URL}")
    return url


def _choice(reply: Any) -> Any:
    try:
        return reply.choices[0]
    except (AttributeError, IndexError, TypeError):
        return None


def _strict(reply: Any) -> float | None:
    try:
        data = json.loads(_choice(reply).message.content)
    except (ValueError, TypeError, AttributeError):
        return None
    value = data.get("rating") if isinstance(data, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_RATING:
        return None
    return float(value)


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _images(concept: Concept) -> list[dict[str, Any]]:
    out = []
    for data in concept.images:
        kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
        url = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
        out.append({"type": "image_url", "image_url": {"url": url}})
    return out
