"""The ``openai`` backend's answers: log-probabilities, JSON, nonsense; and what it sends."""

from __future__ import annotations

import base64
import logging
import math
from collections.abc import Iterator
from typing import Any

import pytest
from chat_server import (
    KEY,
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
from openai_asking import CAT_DOG, ask, ask_one, refusal

from megu_dist.oracle.base import Concept, Pair, Rating

PNG, OTHER_PNG, JPEG = b"\x89PNG one", b"\x89PNG two", b"\xff\xd8 three"


@pytest.fixture(autouse=True)
def everything_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever a test does: no line of any logger holds the key."""
    caplog.set_level(logging.DEBUG)
    yield
    assert KEY not in caplog.text


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
