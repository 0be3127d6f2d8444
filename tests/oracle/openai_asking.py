"""Puts questions to the ``openai`` backend at a local endpoint, without Ray."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from chat_server import KEY_ENV, Answer, Asked, ChatServer

from megu_dist.errors import UserError
from megu_dist.oracle.backends.openai import OpenAIOracle, OpenAISettings
from megu_dist.oracle.base import Concept, Pair, Rating

CAT_DOG = Pair(Concept("cat"), Concept("dog"))


def settings(server: ChatServer, **more: Any) -> OpenAISettings:
    given = {"model": "m", "base_url": server.url, "api_key_env": KEY_ENV, "retries": 0, "images": 0, "shortlist": 0}
    return OpenAISettings(name="openai", **{**given, **more})


def ask(server: ChatServer, pairs: list[Pair], **more: Any) -> list[Rating]:
    async def rate() -> list[Rating]:
        oracle = OpenAIOracle(settings(server, **more))
        async with oracle.client:
            return await oracle.rate(pairs)

    return asyncio.run(rate())


def ask_one(answer: Answer, **more: Any) -> tuple[Rating, list[Asked]]:
    with ChatServer(answer) as server:
        return ask(server, [CAT_DOG], **more)[0], server.requests


def refusal(answer: Answer, **more: Any) -> tuple[str, list[Asked]]:
    with ChatServer(answer) as server:
        with pytest.raises(UserError) as error:
            ask(server, [CAT_DOG], **more)
        return str(error.value), server.requests
