"""What an interruption costs: nothing but the requests in flight; and what two fills at once pay."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from chat_server import KEY_ENV, ChatServer, opinion, thoughtful
from stored_ratings import asking, job, refill

from megu_dist.oracle import serve
from megu_dist.oracle.backends.embedding import EmbeddingOracle, EmbeddingSettings
from megu_dist.oracle.backends.openai import OpenAISettings
from megu_dist.oracle.base import Concept, Pair
from megu_dist.oracle.fill import about, fill
from megu_dist.oracle.ratings import RatingStore

pytestmark = pytest.mark.usefixtures("ray_local")
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
FORGET = [0, 2, 4, 6, 8]
QUESTIONS = 5 * 4 + 2 * 5 * 5  # ordered pairs inside the request, and to the other five both ways
IN_FLIGHT = 4  # two batches of two


class Endpoint(ChatServer):
    """Has an opinion of everything; takes its time."""

    def __init__(self, hold: float) -> None:
        super().__init__(thoughtful, hold)

    def forget(self, hold: float) -> None:
        """Begins anew, as if nothing had been asked."""
        with self.lock:
            self.requests.clear()
            self.hold = hold

    def wait_for(self, count: int) -> None:
        """Until so many requests have come."""
        end = time.monotonic() + 120
        while len(self.requests) < count:
            assert time.monotonic() < end, f"{len(self.requests)} of {count} requests"
            time.sleep(0.01)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    with Endpoint(0.02) as server:
        yield server


def settings_for(server: ChatServer, **more: Any) -> OpenAISettings:
    given = {"base_url": server.url, "api_key_env": KEY_ENV, "concurrency": IN_FLIGHT, "max_batch_size": IN_FLIGHT // 2}
    return asking(**{**given, **more})


@pytest.fixture(scope="module")
def kept(ray_local: None, endpoint: Endpoint) -> Iterator[OpenAISettings]:
    """The settings of an oracle that runs already, so that a fill starts at once."""
    from ray import serve as ray_serve

    settings = settings_for(endpoint)
    ray_serve.start(proxy_location="Disabled")
    ray_serve.run(serve.application(settings), name=serve.app_name(settings), route_prefix=None)
    yield settings
    ray_serve.shutdown()


@pytest.fixture(autouse=True)
def afresh(endpoint: Endpoint) -> None:
    endpoint.forget(0.02)


def expected_ratings() -> np.ndarray:
    rows = [
        [10.0 if a == b else (opinion(a, b) + opinion(b, a)) / 2 for b in NAMES] for a in (NAMES[i] for i in FORGET)
    ]
    return np.array(rows)


def check_rows(data: dict[str, Any]) -> None:
    """T is what it would have been undisturbed."""
    np.testing.assert_allclose(np.array(data["ratings"]), expected_ratings(), atol=1e-5)
    weights = np.exp(expected_ratings())
    weights[range(5), FORGET] = 0
    np.testing.assert_allclose(np.array(data["transition"]), weights / weights.sum(1, keepdims=True), rtol=1e-4)


def keys(folder: Path, settings: OpenAISettings) -> list[str]:
    """Of the store's lines, in order."""
    path = RatingStore(folder, about(settings)).path
    return [json.loads(line)["key"] for line in path.read_text().splitlines()] if path.exists() else []


def stop_at(count: int, error: BaseException) -> Callable[[int], None]:
    def progress(done: int) -> None:
        if done >= count:
            raise error

    return progress


def test_an_interrupted_fill_goes_on_where_it_was(kept: OpenAISettings, endpoint: Endpoint, tmp_path: Path) -> None:
    store = tmp_path / "s"
    with pytest.raises(KeyboardInterrupt):
        fill(kept, job(NAMES, FORGET), store, tmp_path, stop_at(QUESTIONS // 2, KeyboardInterrupt()))
    assert not (tmp_path / "transition.json").exists()
    held = len(keys(store, kept))
    assert QUESTIONS // 2 <= held < QUESTIONS
    info, data = refill(kept, job(NAMES, FORGET), store, tmp_path)
    assert (info["reused"], info["calls"]) == (held, QUESTIONS - held)
    asked = endpoint.times_asked()
    assert len(asked) == QUESTIONS == len(set(keys(store, kept))) == len(keys(store, kept))
    assert sum(asked.values()) - QUESTIONS <= IN_FLIGHT
    check_rows(data)


def test_a_new_temperature_makes_no_call(kept: OpenAISettings, endpoint: Endpoint, tmp_path: Path) -> None:
    _, first = refill(kept, job(NAMES, FORGET), tmp_path / "s", tmp_path)
    assert len(endpoint.requests) == QUESTIONS
    info, second = refill(kept, job(NAMES, FORGET, tau=0.2), tmp_path / "s", tmp_path)
    assert (info["calls"], len(endpoint.requests)) == (0, QUESTIONS)
    assert second["ratings"] == first["ratings"]
    assert second["transition"] != first["transition"]


def test_another_request_asks_only_what_is_new(kept: OpenAISettings, endpoint: Endpoint, tmp_path: Path) -> None:
    refill(kept, job(NAMES, FORGET[:4]), tmp_path / "s", tmp_path)
    before = len(endpoint.requests)
    info, data = refill(kept, job(NAMES, FORGET), tmp_path / "s", tmp_path)
    assert info["calls"] == len(endpoint.requests) - before == 10  # eight, with the five odd ones, both ways
    assert set(endpoint.times_asked().values()) == {1}
    check_rows(data)


def test_two_fills_at_once_share_the_work(kept: OpenAISettings, endpoint: Endpoint, tmp_path: Path) -> None:
    found: list[dict[str, Any]] = []

    def work(name: str) -> None:
        found.append(refill(kept, job(NAMES, FORGET), tmp_path / "s", tmp_path / name)[1])

    both = [threading.Thread(target=work, args=(name,)) for name in ("a", "b")]
    for one in both:
        one.start()
    for one in both:
        one.join(60)
    assert len(found) == 2
    for data in found:
        check_rows(data)
    assert found[0]["transition"] == found[1]["transition"]
    assert len(endpoint.times_asked()) == QUESTIONS
    repeated = len(endpoint.requests) - QUESTIONS
    assert repeated <= 2 * IN_FLIGHT
    lines = keys(tmp_path / "s", kept)
    assert len(set(lines)) == QUESTIONS
    assert len(lines) - QUESTIONS <= repeated
    assert sum(data["calls"] for data in found) == len(endpoint.requests)
    assert min(data["calls"] for data in found) > QUESTIONS / 5  # both had work


def test_three_fills_at_once(kept: OpenAISettings, endpoint: Endpoint, tmp_path: Path) -> None:
    threads = [
        threading.Thread(target=refill, args=(kept, job(NAMES, FORGET), tmp_path / "s", tmp_path / name))
        for name in "abc"
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
    texts = [json.loads((tmp_path / name / "transition.json").read_text()) for name in "abc"]
    for data in texts:
        check_rows(data)
    assert len(endpoint.requests) < 2 * QUESTIONS


def replicas() -> set[int]:
    """Process ids of Serve's replicas on the shared Ray."""
    import ray
    from ray._private.state import actors

    named = [a for a in ray.util.list_named_actors(all_namespaces=True) if a["name"].startswith("SERVE_REPLICA")]
    ids = [ray.get_actor(a["name"], namespace=a["namespace"])._actor_id.hex() for a in named]
    return {int(actors(wanted)["Pid"]) for wanted in ids}


def test_a_replica_that_is_killed_costs_the_requests_in_flight(
    kept: OpenAISettings, endpoint: Endpoint, tmp_path: Path
) -> None:
    (victim,), killed = replicas(), []

    def progress(done: int) -> None:
        if done >= QUESTIONS // 2 and not killed:
            killed.append(victim)
            os.kill(victim, signal.SIGKILL)

    info = fill(kept, job(NAMES, FORGET), tmp_path / "s", tmp_path, progress)
    assert killed
    assert info["calls"] == QUESTIONS
    check_rows(json.loads((tmp_path / "transition.json").read_text()))
    asked = endpoint.times_asked()
    assert len(asked) == QUESTIONS
    assert sum(asked.values()) - QUESTIONS <= 2 * IN_FLIGHT
    assert len(keys(tmp_path / "s", kept)) == QUESTIONS
    assert victim not in replicas()


@pytest.mark.slow
def test_the_embedding_replica_killed_in_mid_fill(kept: OpenAISettings, tmp_path: Path) -> None:
    settings = EmbeddingSettings(name="embedding", max_batch_size=2, pairs_per_request=2)
    oracle, concepts = EmbeddingOracle(settings), [Concept(name) for name in NAMES]
    undisturbed = [[r.value for r in oracle.rate([Pair(concepts[i], other) for other in concepts])] for i in FORGET]
    before = replicas()
    killed: list[int] = []

    def progress(done: int) -> None:
        if done >= 10 and not killed:
            killed.extend(replicas() - before)
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    fill(settings, job(NAMES, FORGET), tmp_path / "s1", tmp_path, progress)
    assert len(killed) == 1
    data = json.loads((tmp_path / "transition.json").read_text())
    np.testing.assert_allclose(np.array(data["ratings"]), undisturbed, atol=1e-4)
    assert data["calls"] == 5 * 9 - 10  # each pair inside the request is one question


def test_a_command_that_is_killed_goes_on_where_it_was(
    kept: OpenAISettings, endpoint: Endpoint, run_megu: Any, cache_dir: Path, tmp_path: Path
) -> None:
    endpoint.forget(0.1)
    words = ["oracle", "fill", "data=digits", f"data.cache_dir={cache_dir}", f"run.dir={tmp_path}", "run.name=r"]
    words += [f"forget.classes={FORGET}".replace(" ", ""), "oracle=openai", "oracle.images=0", "oracle.shortlist=0"]
    asked_with = ("model", "base_url", "api_key_env", "concurrency", "max_batch_size")
    words += [f"oracle.{name}={getattr(kept, name)}" for name in asked_with]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with (tmp_path / "output").open("w") as output:
        first = subprocess.Popen(
            [sys.executable, "-m", "megu_dist.cli", *words], stdout=output, stderr=output, env=environment
        )
        try:
            endpoint.wait_for(QUESTIONS // 3)
            family = psutil.Process(first.pid).children(recursive=True)
        finally:
            first.kill()
            first.wait()
    _, left = psutil.wait_procs(family, timeout=5)  # its Ray goes with it, but for two agents that nobody tells
    for process in left:
        process.kill()
    psutil.wait_procs(left, timeout=5)
    time.sleep(2 * endpoint.hold)
    held, sent = len(keys(tmp_path / "ratings", kept)), len(endpoint.requests)
    assert QUESTIONS // 3 - IN_FLIGHT <= held < QUESTIONS
    assert sent - held <= IN_FLIGHT
    done = run_megu(words)
    assert done.code == 0, done.output
    assert f"calls {QUESTIONS - held}, reused {held}" in " ".join(done.output.split())
    assert len(endpoint.times_asked()) == QUESTIONS
    assert len(endpoint.requests) == sent + QUESTIONS - held
    check_rows(json.loads((tmp_path / "r" / "transition.json").read_text()))
