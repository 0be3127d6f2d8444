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
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlparse

from megu_dist.config.registry import register
from megu_dist.config.schema import OracleSettings
from megu_dist.errors import UserError, nearest
from megu_dist.oracle import prompts
from megu_dist.oracle.base import MAX_RATING, About, Concept, Pair, Rating

MODES = ("auto", "logprobs", "json")
MIN_MASS = 0.5  # of the answer's probability that must lie on digits
DEFAULT_URL = "https://api.openai.com/v1"


@dataclass(kw_only=True)
class OpenAISettings(OracleSettings):
    """``mode``: logprobs (expectation over one-digit answers), json (strict JSON answer), auto (logprobs where offered)."""

    model: str | None = None
    base_url: str = DEFAULT_URL
    api_key_env: str = "OPENAI_API_KEY"
    mode: str = "auto"
    concurrency: int = 8  # requests open at the endpoint, per replica
    retries: int = 5  # of a request that failed, was limited or stalled; exponential back-off with jitter
    request_timeout_s: float = 60.0
    attempts: int = 3  # at an answer that can be read
    images: int = 2
    shortlist: int = 32
    pairs_per_request: int = 1
    num_cpus: float = 0.5


@register("oracle", "openai", OpenAISettings)
class OpenAIOracle:
    """An OpenAI-compatible multimodal endpoint (oracle.base_url, oracle.model); needs megu-dist[oracle]."""

    def __init__(self, settings: OpenAISettings) -> None:
        from openai import AsyncOpenAI

        self.settings = settings
        key = os.environ.get(settings.api_key_env) or "none"
        self.client = AsyncOpenAI(
            api_key=key,
            base_url=settings.base_url,
            max_retries=settings.retries,
            timeout=settings.request_timeout_s,
        )
        self.limit = asyncio.Semaphore(settings.concurrency)
        self.logprobs = settings.mode != "json"

    @classmethod
    def about(cls, settings: OpenAISettings) -> About:
        """Model and host; both answer forms are part of the prompt's hash."""
        if importlib.util.find_spec("openai") is None:
            raise UserError("oracle=openai needs the package openai: pip install 'megu-dist[oracle]'")
        if not settings.model:
            raise UserError("oracle.model is not set: name the model that the endpoint serves")
        if settings.mode not in MODES:
            raise UserError(f"oracle.mode={settings.mode}: {nearest(settings.mode, MODES)}")
        url = urlparse(settings.base_url)
        if url.scheme not in ("http", "https") or not url.netloc:
            raise UserError(f"oracle.base_url={settings.base_url}: must be an http(s) address, as in {DEFAULT_URL}")
        if url.username or url.password:
            raise UserError("oracle.base_url holds a user name or password: put the key into an environment variable")
        if settings.base_url == DEFAULT_URL and not os.environ.get(settings.api_key_env):
            raise UserError(f"the environment variable {settings.api_key_env} is not set: it must hold the API key")
        wordings = prompts.hashes(prompts.count_wordings(), prompts.ANSWER_DIGIT + prompts.ANSWER_JSON, settings.mode)
        return About(f"openai:{settings.model}@{url.netloc}{url.path}", prompts=wordings, symmetric=False)

    async def rate(self, pairs: list[Pair]) -> list[Rating]:
        """Answers are awaited together, at most ``concurrency`` at a time over all requests of the replica."""
        return list(await asyncio.gather(*(self._one(pair) for pair in pairs)))

    async def _one(self, pair: Pair) -> Rating:
        spent = [0, 0]
        for _ in range(self.settings.attempts):
            async with self.limit:
                value = await (self._by_digit(pair, spent) if self.logprobs else self._by_json(pair, spent))
            if value is not None:
                return Rating(value, *spent)
        return Rating(float("nan"), *spent)

    async def _by_digit(self, pair: Pair, spent: list[int]) -> float | None:
        """Expectation over digits; None (and JSON from then on, in ``auto``) where there are no log-probabilities."""
        from openai import BadRequestError, UnprocessableEntityError

        options = {"max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": 20}
        try:
            reply = await self._send(pair, prompts.ANSWER_DIGIT, spent, options)
        except (BadRequestError, UnprocessableEntityError):
            if self.settings.mode == "logprobs":
                raise
            self.logprobs = False
            return None
        try:
            top = reply.choices[0].logprobs.content[0].top_logprobs
            mass: dict[int, float] = {}
            for item in top:
                token = item.token.strip()
                if token in "0123456789" and len(token) == 1:
                    mass[int(token)] = mass.get(int(token), 0.0) + math.exp(item.logprob)
        except (AttributeError, IndexError, TypeError):
            self.logprobs = self.settings.mode == "logprobs"
            return None
        total = sum(mass.values())
        if total < MIN_MASS:
            return None
        return MAX_RATING / 9 * sum(digit * p for digit, p in mass.items()) / total

    async def _by_json(self, pair: Pair, spent: list[int]) -> float | None:
        """A strict {"rating": N} with N in [0, 10]; None for anything else."""
        from openai import BadRequestError, UnprocessableEntityError

        options: dict[str, Any] = {"max_tokens": 16, "temperature": 0}
        try:
            reply = await self._send(
                pair, prompts.ANSWER_JSON, spent, options | {"response_format": {"type": "json_object"}}
            )
        except (BadRequestError, UnprocessableEntityError):  # an endpoint without response_format
            reply = await self._send(pair, prompts.ANSWER_JSON, spent, options)
        try:
            data = json.loads(reply.choices[0].message.content)
        except (ValueError, TypeError, AttributeError, IndexError):
            return None
        value = data.get("rating") if isinstance(data, dict) else None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_RATING:
            return None
        return float(value)

    async def _send(self, pair: Pair, answer: str, spent: list[int], options: dict[str, Any]) -> Any:
        content: list[Any] = [_text(prompts.opening(pair, answer)), *_images(pair.first)]
        content += [_text(prompts.closing(pair)), *_images(pair.second)]
        from openai import APIConnectionError, APIStatusError, AuthenticationError, NotFoundError, PermissionDeniedError

        messages: list[Any] = [{"role": "user", "content": content}]
        where = f"{self.settings.base_url} (oracle.model={self.settings.model})"
        try:
            reply = await self.client.chat.completions.create(
                model=str(self.settings.model), messages=messages, **options
            )
        except (AuthenticationError, PermissionDeniedError):
            raise UserError(
                f"{where} refused the key in the environment variable {self.settings.api_key_env}"
            ) from None
        except NotFoundError:
            raise UserError(f"{where}: the endpoint knows no such model or path") from None
        except APIConnectionError as error:  # timeouts, too
            raise UserError(f"{where} did not answer {self.settings.retries + 1} times: {error}") from None
        except APIStatusError as error:
            if error.status_code in (400, 422):
                raise
            tries = self.settings.retries + 1
            raise UserError(f"{where} answered with status {error.status_code} {tries} times") from None
        except json.JSONDecodeError:  # a body that is no JSON at all
            return None
        usage = getattr(reply, "usage", None)
        spent[0] += getattr(usage, "prompt_tokens", 0) or 0
        spent[1] += getattr(usage, "completion_tokens", 0) or 0
        return reply


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _images(concept: Concept) -> list[dict[str, Any]]:
    out = []
    for data in concept.images:
        kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
        url = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
        out.append({"type": "image_url", "image_url": {"url": url}})
    return out
