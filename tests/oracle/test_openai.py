"""The ``openai`` backend against a real HTTP server that answers, fails, stalls, limits and talks nonsense."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_server import (
    KEY,
    KEY_ENV,
    Answer,
    Asked,
    ChatServer,
    Reply,
    completion,
    digits,
    failed,
    opinion,
    said,
    thoughtful,
)

from megu_dist.errors import UserError
from megu_dist.oracle import shortlist
from megu_dist.oracle.backends.openai import OpenAIOracle, OpenAISettings
from megu_dist.oracle.base import Concept, Pair, Rating
from megu_dist.oracle.fill import Job, fill

PNG, OTHER_PNG, JPEG = b"\x89PNG one", b"\x89PNG two", b"\xff\xd8 three"
CAT_DOG = Pair(Concept("cat"), Concept("dog"))
NAMES = ["cat", "dog", "frog", "truck", "deer"]


@pytest.fixture(autouse=True)
def everything_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever a test does: no line of any logger holds the key."""
    caplog.set_level(logging.DEBUG)
    yield
    assert KEY not in caplog.text


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


def by_digit_or(reply: Reply) -> Answer:
    """``reply`` to questions for log-probabilities, a good JSON answer to others."""
    return lambda asked: reply if asked.wants_logprobs else said('{"rating": 4}')


# --- log-probabilities ------------------------------------------------------------------------------------------------


def test_a_rating_is_the_expectation_over_digits() -> None:
    rating, asked = ask_one(lambda _: digits({"7": 0.5, "9": 0.25, " 1": 0.05, "Yes": 0.1, "12": 0.1}, (321, 1)))
    expected = (7 * 0.5 + 9 * 0.25 + 1 * 0.05) / 0.8 * 10 / 9
    assert rating == Rating(pytest.approx(expected), 321, 1)
    body = asked[0].body
    assert (body["model"], body["max_tokens"], body["logprobs"], body["top_logprobs"]) == ("m", 1, True, 20)
    assert asked[0].path == "/v1/chat/completions"


def test_the_ends_of_the_scale() -> None:
    assert ask_one(lambda _: digits({"9": 0.99}))[0].value == pytest.approx(10)
    assert ask_one(lambda _: digits({"0": 0.99}))[0].value == 0


def test_a_digit_that_two_tokens_spell_counts_with_both() -> None:
    rating, _ = ask_one(lambda _: digits({"3": 0.3, " 3": 0.3, "6": 0.4}))
    assert rating.value == pytest.approx((3 * 0.6 + 6 * 0.4) * 10 / 9)


def test_an_answer_that_is_no_digit_is_asked_for_as_json() -> None:
    rating, asked = ask_one(by_digit_or(digits({"The": 0.6, "7": 0.4}, (100, 1))))
    assert rating == Rating(4.0, 200, 8)
    assert [a.wants_logprobs for a in asked] == [True, False]


def test_in_mode_logprobs_an_answer_that_is_no_digit_is_no_rating() -> None:
    rating, asked = ask_one(by_digit_or(digits({"The": 0.6, "7": 0.4})), mode="logprobs", attempts=2)
    assert math.isnan(rating.value)
    assert [a.wants_logprobs for a in asked] == [True, True]


@pytest.mark.parametrize("reply", [said("7"), failed(400, "logprobs are not supported"), failed(422, "logprobs")])
def test_an_endpoint_without_logprobs_is_asked_for_json_once_that_is_known(reply: Reply) -> None:
    with ChatServer(by_digit_or(reply)) as server:
        rated = ask(server, [CAT_DOG, Pair(Concept("a"), Concept("b"))], concurrency=1, attempts=1)
    assert [rating.value for rating in rated] == [4.0, 4.0]
    assert [asked.wants_logprobs for asked in server.requests] == [True, False, False]
    assert server.requests[1].body["response_format"] == {"type": "json_object"}


@pytest.mark.parametrize(("reply", "part"), [(said("7"), "its answer holds none"), (failed(400, "unknown"), "unknown")])
def test_mode_logprobs_at_an_endpoint_without_them_stops(reply: Reply, part: str) -> None:
    message, asked = refusal(lambda _: reply, mode="logprobs")
    assert "gives no log-probabilities" in message
    assert part in message
    assert "oracle.mode=auto" in message
    assert len(asked) == 1


@pytest.mark.parametrize(
    "logprobs",
    [
        {},
        {"content": None},
        {"content": []},
        {"content": [{"token": "7", "logprob": -1}]},
        {"content": [{"top_logprobs": [{"token": None, "logprob": -1}]}]},
        {"content": [{"top_logprobs": [{"token": "7", "logprob": None}]}]},
        {"content": [{"top_logprobs": [{"token": "7", "logprob": 1e6}]}]},
        {"content": [{"top_logprobs": [{"token": "7", "logprob": "x"}]}]},
    ],
)
def test_garbled_logprobs_are_no_rating(logprobs: Any) -> None:
    rating, _ = ask_one(lambda _: completion({"content": "7"}, logprobs), mode="logprobs", attempts=1)
    assert math.isnan(rating.value)


# --- JSON -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "value"), [('{"rating": 6}', 6.0), (' {"rating": 2.5, "why": "fur"}\n', 2.5)])
def test_json_answers(text: str, value: float) -> None:
    rating, asked = ask_one(lambda _: said(text, (50, 9)), mode="json")
    assert rating == Rating(value, 50, 9)
    assert not asked[0].wants_logprobs
    assert '{"rating": N}' in asked[0].text


@pytest.mark.parametrize(
    "reply",
    [
        said('{"rating": 6'),
        said('Sure! {"rating": 6}'),
        said('```json\n{"rating": 6}\n```'),
        said('{"rating": 11}'),
        said('{"rating": -1}'),
        said('{"rating": true}'),
        said('{"rating": "6"}'),
        said('{"rating": NaN}'),
        said('{"rating": Infinity}'),
        said('{"rating": null}'),
        said('{"score": 6}'),
        said("[6]"),
        said("6"),
        said(""),
        said(None, refusal="I cannot help with that."),
        said("I'm sorry, but I can't compare these."),
        Reply({"choices": []}),
        Reply({"choices": None, "usage": None}),
        Reply({"choices": [{"message": None}], "usage": {"prompt_tokens": "many"}}),
        Reply([1, 2]),
        Reply("<html>busy</html>"),
        Reply("<html>busy</html>", headers={"Content_Type": "text/html"}),
        Reply(""),
    ],
)
@pytest.mark.parametrize("mode", ["json", "auto"])
def test_an_answer_that_cannot_be_read_is_no_rating_after_all_attempts(reply: Reply, mode: str) -> None:
    rating, asked = ask_one(lambda _: reply, mode=mode, attempts=2)
    assert math.isnan(rating.value)
    assert sum(not a.wants_logprobs for a in asked) == (1 if len(asked) == 2 and asked[0].wants_logprobs else 2)
    usage = reply.body.get("usage") if isinstance(reply.body, dict) else None
    if isinstance(usage, dict) and isinstance(usage.get("prompt_tokens"), int):
        assert rating[1:] == (100 * len(asked), 7 * len(asked))


def test_a_later_attempt_counts_with_the_tokens_of_all() -> None:
    answers = [said("no", (10, 3)), said('{"rating": 12}', (10, 4)), said('{"rating": 1}', (10, 5))]
    rating, asked = ask_one(lambda a: answers[a.number], mode="json", attempts=3)
    assert rating == Rating(1.0, 30, 12)
    assert len(asked) == 3


def test_an_endpoint_without_response_format_is_asked_without_it_from_then_on() -> None:
    def answer(asked: Asked) -> Reply:
        return failed(400, "response_format") if "response_format" in asked.body else said('{"rating": 3}')

    with ChatServer(answer) as server:
        rated = ask(server, [CAT_DOG, CAT_DOG], mode="json", concurrency=1)
    assert [rating.value for rating in rated] == [3.0, 3.0]
    assert ["response_format" in asked.body for asked in server.requests] == [True, False, False]


def test_a_model_that_takes_no_settings_at_all_is_asked_without_any() -> None:
    """As models that think first: no max_tokens, no temperature, no log-probabilities."""

    def answer(asked: Asked) -> Reply:
        return said('{"rating": 3}') if set(asked.body) == {"model", "messages"} else failed(400, "unsupported")

    with ChatServer(answer) as server:
        rated = ask(server, [CAT_DOG, CAT_DOG], concurrency=1, attempts=1)
    assert [rating.value for rating in rated] == [3.0, 3.0]
    assert len(server.requests) == 5  # with logprobs, three forms of JSON; and then the one that works


def test_an_endpoint_that_refuses_every_question_stops_and_says_why() -> None:
    message, asked = refusal(lambda a: failed(400, f"no model m for {KEY}, data:image/png;base64,AAAA"))
    assert "refuses every question" in message
    assert "no model m" in message
    assert KEY not in message
    assert "AAAA" not in message
    assert len(asked) == 4


@pytest.mark.parametrize("mode", ["json", "auto", "logprobs"])
def test_one_pair_that_the_endpoint_refuses_costs_only_that_pair(mode: str) -> None:
    """As content filters do."""

    def answer(asked: Asked) -> Reply:
        if "frog" in asked.pair:
            return failed(400, "content filter")
        return digits({"5": 0.9}) if asked.wants_logprobs else said('{"rating": 4}')

    others = [
        Pair(Concept(a), Concept(b)) for a, b in (("cat", "dog"), ("cat", "frog"), ("frog", "dog"), ("dog", "cat"))
    ]
    with ChatServer(answer) as server:
        values = [rating.value for rating in ask(server, others, mode=mode, concurrency=1, attempts=2)]
    good = 4.0 if mode == "json" else pytest.approx(50 / 9)
    assert [values[0], values[3]] == [good, good]
    assert all(map(math.isnan, values[1:3]))


# --- what is sent -----------------------------------------------------------------------------------------------------


def test_images_travel_as_data_urls_in_order() -> None:
    pair = Pair(Concept("cat", "a pet", (PNG, JPEG)), Concept("dog", "", (OTHER_PNG,)))
    with ChatServer(lambda _: digits({"5": 0.9})) as server:
        ask(server, [pair])
    content = server.requests[0].content
    assert [part["type"] for part in content] == ["text", "image_url", "image_url", "text", "image_url"]
    urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    assert [url.partition(";base64,")[0] for url in urls] == ["data:image/png", "data:image/jpeg", "data:image/png"]
    assert [base64.b64decode(url.partition(";base64,")[2]) for url in urls] == [PNG, JPEG, OTHER_PNG]
    assert '"cat"' in content[0]["text"]
    assert "a pet" in content[0]["text"]
    assert '"dog"' in content[3]["text"]
    assert "dog" not in content[0]["text"]


def test_wordings_differ() -> None:
    with ChatServer(lambda _: digits({"5": 0.9})) as server:
        ask(server, [CAT_DOG._replace(phrasing=p) for p in range(3)])
    assert len({asked.text for asked in server.requests}) == 3
    assert {asked.pair for asked in server.requests} == {("cat", "dog")}


def test_at_most_as_many_requests_are_open_as_allowed() -> None:
    pairs = [Pair(Concept(f"a{i}"), Concept("b")) for i in range(24)]
    with ChatServer(thoughtful, hold=0.05) as server:
        rated = ask(server, pairs, concurrency=3)
    assert server.most_open == 3
    assert [rating.value for rating in rated] == pytest.approx([opinion(f"a{i}", "b") for i in range(24)])


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
    assert message.endswith("answered with status 402: out of credit")
    assert refusal(lambda _: Reply("it is gone", 410))[0].endswith("answered with status 410: it is gone")


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
