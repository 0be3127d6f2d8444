"""The ``openai`` backend at an endpoint that fails, stalls, limits and refuses; its settings; its key, which nothing shows."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_server import (
    KEY,
    KEY_ENV,
    Answer,
    ChatServer,
    Reply,
    digits,
    failed,
    opinion,
    thoughtful,
)
from openai_asking import CAT_DOG, ask, ask_one, refusal, settings

from megu_dist.errors import UserError
from megu_dist.oracle import shortlist
from megu_dist.oracle.backends.openai import OpenAIOracle, OpenAISettings
from megu_dist.oracle.base import Concept
from megu_dist.oracle.fill import Job, fill

PNG = b"\x89PNG one"
NAMES = ["cat", "dog", "frog", "truck", "deer"]


@pytest.fixture(autouse=True)
def everything_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever a test does: no line of any logger holds the key."""
    caplog.set_level(logging.DEBUG)
    yield
    assert KEY not in caplog.text


# --- failures ---------------------------------------------------------------------------------------------------------


def test_a_request_that_fails_twice_is_asked_again_later_and_later() -> None:
    rating, asked = ask_one(lambda a: failed(500) if a.number < 2 else digits({"9": 0.9}), retries=2)
    assert rating.value == pytest.approx(10)
    first, second = asked[1].at - asked[0].at, asked[2].at - asked[1].at
    assert first > 0.3  # half a second, less up to a quarter by chance
    assert second > 0.7


@pytest.mark.parametrize("status", [500, 503])
def test_an_endpoint_that_always_fails(status: int) -> None:
    message, asked = refusal(lambda _: failed(status, "out of memory"), retries=1)
    assert f"status {status} 2 times" in message
    assert "out of memory" in message
    assert len(asked) == 2


def test_a_limited_rate_is_waited_for() -> None:
    rating, asked = ask_one(lambda a: failed(429, Retry_After="1") if a.number == 0 else digits({"9": 0.9}), retries=1)
    assert rating.value == pytest.approx(10)
    assert asked[1].at - asked[0].at > 0.95  # without the header, at most half a second


def test_a_request_that_stalls_is_asked_again() -> None:
    with ChatServer(lambda a: Reply(hold=-1) if a.number == 0 else digits({"9": 0.9})) as server:
        assert ask(server, [CAT_DOG], retries=1, request_timeout_s=0.3)[0].value == pytest.approx(10)
        assert len(server.requests) == 2


def test_an_endpoint_that_always_stalls() -> None:
    message, asked = refusal(lambda _: Reply(hold=-1), retries=1, request_timeout_s=0.2)
    assert "did not answer 2 times" in message
    assert "timed out" in message
    assert len(asked) == 2


def test_an_endpoint_that_is_not_there() -> None:
    with ChatServer(thoughtful) as server:
        gone = settings(server)
    with pytest.raises(UserError, match="did not answer 1 times"):
        asyncio.run(OpenAIOracle(gone).rate([CAT_DOG]))


@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_is_refused_is_named_and_not_shown(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong: Answer = lambda _: failed(status, f"Incorrect API key provided: {KEY}")  # noqa: E731
    message, asked = refusal(wrong, retries=3)
    assert f"refused the key in the environment variable {KEY_ENV}" in message
    assert KEY not in message
    assert len(asked) == 1
    monkeypatch.delenv(KEY_ENV)
    message, asked = refusal(wrong)
    assert f"{KEY_ENV} is not set" in message
    assert asked[0].headers["authorization"] == "Bearer none"


def test_an_unknown_model_or_path() -> None:
    message, asked = refusal(lambda _: failed(404, "The model `m` does not exist"), retries=3)
    assert "no such model" in message
    assert "oracle.model=m" in message
    assert len(asked) == 1


def test_another_error_status_is_told_without_a_count() -> None:
    message, _ = refusal(lambda _: failed(402, "out of credit"), retries=3)
    assert "answered with status 402: out of credit; what was rated is kept" in message
    assert "answered with status 410: it is gone; " in refusal(lambda _: Reply("it is gone", 410))[0]


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://me:hunter2@host/v1",
        "http://hunter2@host/v1",
        "http://:hunter2@host/v1",
        "https://host/v1?api_key=hunter2",
        "https://host/v1#hunter2",
        "ftp://me:hunter2@host/v1",
        "me:hunter2@host/v1",
        "http://me:hunter2[@host/v1",
        "http://host:hunter2/v1",
    ],
)
def test_an_address_with_a_key_in_it_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(UserError, match=r"oracle\.base_url") as error:
        OpenAIOracle.about(OpenAISettings(name="openai", model="m", base_url=url))
    assert "hunter2" not in str(error.value) or url.startswith("me:")


@pytest.mark.parametrize("url", ["host:8000/v1", "ftp://host/v1", "", "http://", "http://:8000/v1"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(UserError, match=r"oracle\.base_url"):
        OpenAIOracle.about(OpenAISettings(name="openai", model="m", base_url=url))


def test_a_key_instead_of_the_name_of_a_variable_is_refused_and_not_shown() -> None:
    with pytest.raises(UserError, match=r"oracle\.api_key_env must be the name") as error:
        OpenAIOracle.about(OpenAISettings(name="openai", model="m", base_url="http://host/v1", api_key_env=KEY))
    assert KEY not in str(error.value)


def test_settings_that_cannot_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    given = {"name": "openai", "base_url": "http://host/v1"}
    for more, part in (
        ({}, "oracle.model is not set"),
        ({"model": "m", "mode": "logprob"}, "'logprobs'"),
        ({"model": "m", "base_url": "https://api.openai.com/v1"}, "OPENAI_API_KEY is not set"),
    ):
        with pytest.raises(UserError, match=part):
            OpenAIOracle.about(OpenAISettings(**{**given, **more}))


def test_what_it_says_of_itself_depends_on_model_address_and_mode() -> None:
    def about(**more: Any) -> Any:
        return OpenAIOracle.about(
            OpenAISettings(**{"name": "openai", "model": "m", "base_url": "http://host/v1", **more})
        )

    known = about()
    assert known.id == "openai:m@host/v1"
    assert not known.symmetric
    assert not known.stand_in
    assert len(set(known.prompts)) == 3
    assert about(model="n").id != known.id != about(base_url="http://host:81/v1").id
    assert about(mode="json").prompts != known.prompts
    assert about(api_key_env="OTHER_KEY", retries=1, concurrency=2) == known


# --- the whole way ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("ray_local")
def test_a_fill_through_serve(tmp_path: Path) -> None:
    job = Job([Concept(n, images=(PNG,)) for n in NAMES], [0, 2], shortlist.candidates(0, [0, 2], 5, []), 1.0, True)
    with ChatServer(thoughtful) as server:
        info = fill(
            settings(server, price_prompt=2.0, price_answer=10.0), job, tmp_path / "s", tmp_path, lambda _: None
        )
    assert (info["calls"], info["prompt_tokens"], info["answer_tokens"]) == (14, 1400, 14)  # frog and cat need no more
    assert info["cost"] == pytest.approx((1400 * 2 + 14 * 10) / 1e6)
    assert set(server.times_asked().values()) == {1}
    assert {asked.headers["authorization"] for asked in server.requests} == {f"Bearer {KEY}"}
    data = json.loads((tmp_path / "transition.json").read_text())
    for row, a in ((0, "cat"), (1, "frog")):
        expected = [10.0 if a == b else (opinion(a, b) + opinion(b, a)) / 2 for b in NAMES]
        assert data["ratings"][row] == pytest.approx(expected, abs=1e-5)


def files_that_hold(secret: str, folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("answer", [thoughtful, lambda _: failed(401, f"Incorrect API key provided: {KEY}")])
def test_the_key_is_written_nowhere(answer: Answer, run_megu: Any, tmp_path: Path, cache_dir: Path) -> None:
    import ray

    with ChatServer(answer) as server:
        words = [
            "data=digits",
            f"data.cache_dir={cache_dir}",
            f"run.dir={tmp_path}",
            "run.name=r",
            "forget.classes=[3]",
        ]
        words += ["oracle=openai", "oracle.model=m", f"oracle.base_url={server.url}", f"oracle.api_key_env={KEY_ENV}"]
        done = run_megu(["oracle", "fill", *words, "oracle.retries=0", "oracle.images=1"])
    assert {asked.headers["authorization"] for asked in server.requests} == {f"Bearer {KEY}"}
    if answer is thoughtful:
        assert done.code == 0, done.output
        assert (tmp_path / "r" / "transition.json").is_file()
        assert len(files_that_hold("openai:m@127.0.0.1", tmp_path / "ratings")) == 1
    else:
        assert done.code == 2, done.output
        assert f"refused the key in the environment variable {KEY_ENV}" in done.output
        assert "Traceback" not in done.output
    assert KEY not in done.output
    assert files_that_hold(KEY_ENV, tmp_path)  # the settings name the variable
    assert files_that_hold(KEY, tmp_path) == []
    logs = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs"
    assert files_that_hold("oracle", logs)
    assert files_that_hold(KEY, logs) == []
