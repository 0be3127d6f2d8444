"""A chat endpoint on this machine whose answers a test writes, and which remembers what it was asked."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY, KEY_ENV = "sk-Zz93kQ-never-to-be-seen-7f1d", "MEGU_TEST_CHAT_KEY"
# Set when tests are collected: the processes of the Ray that all tests share inherit it from here.
os.environ[KEY_ENV] = KEY


@dataclass(frozen=True)
class Asked:
    """One request: which one it was, what it said, when it came."""

    number: int
    body: dict[str, Any]
    headers: dict[str, str]
    path: str
    at: float

    @property
    def content(self) -> list[dict[str, Any]]:
        """The parts of the only message."""
        return list(self.body["messages"][0]["content"])

    @property
    def text(self) -> str:
        """All that is asked in words."""
        return "".join(part["text"] for part in self.content if part["type"] == "text")

    @property
    def pair(self) -> tuple[str, str]:
        """The names of the two concepts."""
        found = re.search(r'First concept: "(.*?)".*Second concept: "(.*?)"', self.text, re.DOTALL)
        assert found is not None, self.text
        return found[1], found[2]

    @property
    def wants_logprobs(self) -> bool:
        return bool(self.body.get("logprobs"))


@dataclass(frozen=True)
class Reply:
    """What the server sends. A ``hold`` of -1 never answers."""

    body: Any = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    hold: float = 0.0


Answer = Callable[[Asked], Reply]


def completion(message: dict[str, Any], logprobs: Any = None, tokens: tuple[int, int] = (100, 1)) -> Reply:
    """A chat completion as the protocol has it."""
    choice = {"index": 0, "finish_reason": "stop", "logprobs": logprobs, "message": {"role": "assistant", **message}}
    usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)}
    return Reply(
        {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
    )


def said(text: str | None, tokens: tuple[int, int] = (100, 7), **more: Any) -> Reply:
    """An answer in words, without log-probabilities."""
    return completion({"content": text, **more}, tokens=tokens)


def digits(shares: dict[str, float], tokens: tuple[int, int] = (100, 1)) -> Reply:
    """An answer with the probabilities of its first token."""
    top = [{"token": token, "logprob": math.log(share), "bytes": None} for token, share in shares.items()]
    best = max(shares, key=lambda token: shares[token])
    content = [{**top[list(shares).index(best)], "top_logprobs": top}]
    return completion({"content": best}, {"content": content}, tokens)


def failed(status: int, message: str = "no", **headers: str) -> Reply:
    """An error as the protocol has it."""
    return Reply({"error": {"message": message, "type": "x", "code": None}}, status, headers)


def opinion(first: str, second: str) -> float:
    """What :func:`thoughtful` thinks of a pair: a rating in [0, 10] that is different for nearly every pair and order."""
    low, high = _shares(first, second)
    return (low * 2 + high * 8) * 10 / 9


def thoughtful(asked: Asked) -> Reply:
    """An endpoint with log-probabilities that has an opinion of every pair."""
    low, high = _shares(*asked.pair)
    return digits({"2": low, "8": high})


def _shares(first: str, second: str) -> tuple[float, float]:
    high = (1 + int(hashlib.sha256(f"{first}\0{second}".encode()).hexdigest()[:6], 16) % 98) / 100
    return 1 - high, high


class ChatServer:
    """Context manager. ``requests`` are all so far; ``most_open`` is how many were open at once."""

    def __init__(self, answer: Answer, hold: float = 0.0) -> None:
        self.answer, self.hold = answer, hold
        self.requests: list[Asked] = []
        self.open = self.most_open = 0
        self.closing = threading.Event()
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self), bind_and_activate=False)
        self.server.request_queue_size = 128
        self.server.daemon_threads = True
        self.server.server_bind()
        self.server.server_activate()

    @property
    def url(self) -> str:
        """For ``oracle.base_url``."""
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def times_asked(self) -> Counter[tuple[str, str]]:
        """How often each (first, second) was asked."""
        with self.lock:
            return Counter(asked.pair for asked in self.requests)

    def __enter__(self) -> ChatServer:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def reply(self, path: str, headers: dict[str, str], data: bytes) -> Reply:
        """Takes a request in and waits as long as its answer says."""
        with self.lock:
            asked = Asked(len(self.requests), json.loads(data), headers, path, time.monotonic())
            self.requests.append(asked)
            self.open += 1
            self.most_open = max(self.most_open, self.open)
        try:
            reply = self.answer(asked)
            self.closing.wait(None if reply.hold < 0 else self.hold + reply.hold)
            return reply
        finally:
            with self.lock:
                self.open -= 1


def _handler(chat: ChatServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            reply = chat.reply(self.path, {k.lower(): v for k, v in self.headers.items()}, data)
            body = reply.body.encode() if isinstance(reply.body, str) else json.dumps(reply.body).encode()
            try:
                self.send_response(reply.status)
                self.send_header("Content-Type", "application/json")
                for name, value in reply.headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            except (BrokenPipeError, ConnectionResetError):  # the client has given up
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    return Handler
