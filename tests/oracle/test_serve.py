"""The oracle behind Ray Serve."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

from megu_dist.errors import UserError
from megu_dist.oracle import cluster_has_serve, serve, shortlist
from megu_dist.oracle.backends.embedding import EmbeddingOracle, EmbeddingSettings
from megu_dist.oracle.backends.uniform import UniformSettings
from megu_dist.oracle.base import Concept, Pair, Rating
from megu_dist.oracle.fill import Job, fill

pytestmark = pytest.mark.usefixtures("ray_local")
NAMES = ["shirt", "T-shirt", "ankle boot", "cat", "dog", "truck"]


def job(labels: list[int], tau: float = 1.0) -> Job:
    candidates = shortlist.candidates(0, labels, len(NAMES), [])
    return Job([Concept(name) for name in NAMES], labels, candidates, tau, True)


def test_filling_asks_only_for_the_rows_of_the_request(tmp_path: Path) -> None:
    settings = EmbeddingSettings(name="embedding", max_batch_size=4)
    done: list[int] = []
    info = fill(settings, job([0, 3]), tmp_path / "store", tmp_path, done.append)
    assert not cluster_has_serve()  # what was started is gone
    assert info["calls"] == 9 == done[-1]  # ten pairs; shirt-cat and cat-shirt are one question to a symmetric oracle
    data = json.loads((tmp_path / "transition.json").read_text())
    backend = EmbeddingOracle(settings)
    for row, label in enumerate([0, 3]):
        others = [j for j in range(6) if j != label]
        direct = [r.value for r in backend.rate([Pair(Concept(NAMES[label]), Concept(NAMES[j])) for j in others])]
        assert [data["ratings"][row][j] for j in others] == pytest.approx(direct, abs=1e-3)
        assert data["ratings"][row][label] == 10
        assert data["transition"][row][label] == 0
    t = np.array(data["transition"])
    np.testing.assert_allclose(t.sum(1), 1)
    assert t.argmax(1).tolist() == [1, 4]
    assert (data["rows"], data["row_labels"], data["columns"]) == (["shirt", "cat"], [0, 3], NAMES)
    assert data["oracle"]["name"] == "embedding"
    assert data["oracle"]["id"] == EmbeddingOracle.about(settings).id


def test_a_new_temperature_costs_no_call(tmp_path: Path) -> None:
    settings = EmbeddingSettings(name="embedding")
    fill(settings, job([3]), tmp_path / "store", tmp_path, lambda done: None)
    first = json.loads((tmp_path / "transition.json").read_text())
    info = fill(settings, job([3], tau=0.1), tmp_path / "store", tmp_path, lambda done: None)
    again = json.loads((tmp_path / "transition.json").read_text())
    assert (info["calls"], info["reused"]) == (0, 5)
    assert again["ratings"] == first["ratings"]
    assert max(again["transition"][0]) > max(first["transition"][0])


def test_a_replica_that_dies_is_replaced() -> None:
    import ray

    wanted = [Pair(Concept(a), Concept(b)) for a in NAMES for b in NAMES] * 20
    settings = UniformSettings(name="uniform", max_batch_size=4, pairs_per_request=1, num_replicas=1)
    killed = threading.Event()
    got: list[Rating] = []

    def arrived(pairs: list[Pair], ratings: list[Rating]) -> None:
        assert len(pairs) == len(ratings)
        got.extend(ratings)
        if len(got) >= 100 and not killed.is_set():
            killed.set()
            os.kill(pid, signal.SIGKILL)

    with serve.served(settings) as handle:
        replicas = [a for a in ray.util.list_named_actors(all_namespaces=True) if a["name"].startswith("SERVE_REPLICA")]
        assert len(replicas) == 1
        pid = _pid(replicas[0])
        serve.rate_all(handle, wanted, settings, arrived)
    assert killed.is_set()
    assert [rating.value for rating in got] == [5.0] * len(wanted)


def _pid(actor: dict[str, str]) -> int:
    import ray
    from ray._private.state import actors

    wanted = ray.get_actor(actor["name"], namespace=actor["namespace"])._actor_id.hex()
    return int(actors(wanted)["Pid"])


def test_serve_that_runs_already_is_left_running() -> None:
    from ray import serve as ray_serve

    settings = UniformSettings(name="uniform")
    got: list[Rating] = []
    ray_serve.start(proxy_location="Disabled")
    try:
        with serve.served(settings) as handle:
            serve.rate_all(handle, [Pair(Concept("a"), Concept("b"))], settings, lambda _, ratings: got.extend(ratings))
        assert [rating.value for rating in got] == [5.0]
        assert cluster_has_serve()
        assert not ray_serve.status().applications
    finally:
        ray_serve.shutdown()


def test_a_fill_that_started_serve_leaves_it_to_those_who_came_since() -> None:
    from ray import serve as ray_serve

    pair, got = [Pair(Concept("a"), Concept("b"))], []
    first = serve.served(UniformSettings(name="uniform"))
    first.__enter__()
    with serve.served(EmbeddingSettings(name="embedding")) as handle:  # other settings: an application of its own
        first.__exit__(None, None, None)
        assert cluster_has_serve()
        serve.rate_all(handle, pair, EmbeddingSettings(name="embedding"), lambda _, ratings: got.extend(ratings))
    assert len(got) == 1
    ray_serve.shutdown()


def test_an_oracle_that_does_not_answer_in_time_is_a_clear_error() -> None:
    settings = EmbeddingSettings(name="embedding", timeout_s=0.001)
    with pytest.raises(UserError, match=r"oracle\.timeout_s=0\.001"), serve.served(settings) as handle:
        serve.rate_all(handle, [Pair(Concept(f"{k}"), Concept("b")) for k in range(300)], settings, lambda *_: None)
    assert not cluster_has_serve()
