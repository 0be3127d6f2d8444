"""The oracle behind Ray Serve."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

from megu_dist.oracle import cluster_has_serve, serve
from megu_dist.oracle.backends.embedding import EmbeddingOracle, EmbeddingSettings
from megu_dist.oracle.backends.uniform import UniformSettings
from megu_dist.oracle.base import Concept
from megu_dist.oracle.fill import fill

pytestmark = pytest.mark.usefixtures("ray_local")
NAMES = ["shirt", "T-shirt", "ankle boot", "cat", "dog", "truck"]


def test_filling_asks_only_for_the_rows_of_the_request(tmp_path: Path) -> None:
    settings = EmbeddingSettings(name="embedding", max_batch_size=4)
    done: list[int] = []
    info = fill(settings, NAMES, [0, 3], 1.0, True, tmp_path, done.append)
    assert not cluster_has_serve()  # what was started is gone
    assert info["calls"] == 10 == done[-1]
    data = json.loads((tmp_path / "transition.json").read_text())
    backend = EmbeddingOracle(settings)
    for row, label in enumerate([0, 3]):
        others = [j for j in range(6) if j != label]
        direct = backend.rate([(Concept(NAMES[label]), Concept(NAMES[j])) for j in others])
        assert [data["ratings"][row][j] for j in others] == pytest.approx(direct, abs=1e-3)
        assert data["ratings"][row][label] == 10
        assert data["transition"][row][label] == 0
    t = np.array(data["transition"])
    np.testing.assert_allclose(t.sum(1), 1)
    assert t.argmax(1).tolist() == [1, 4]
    assert (data["rows"], data["row_labels"], data["columns"]) == (["shirt", "cat"], [0, 3], NAMES)
    assert data["oracle"]["name"] == "embedding"
    assert data["oracle"]["id"] == backend.identity


def test_a_replica_that_dies_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(serve, "IN_FLIGHT", 8)
    pairs = [(Concept(a), Concept(b)) for a in NAMES for b in NAMES] * 20
    killed = threading.Event()

    def kill(done: int) -> None:
        if done >= 100 and not killed.is_set():
            killed.set()
            os.kill(pid, signal.SIGKILL)

    with serve.served(UniformSettings(name="uniform", max_batch_size=4, num_replicas=1)) as handle:
        replicas = [a for a in ray.util.list_named_actors(all_namespaces=True) if a["name"].startswith("SERVE_REPLICA")]
        assert len(replicas) == 1
        pid = _pid(replicas[0])
        ratings = serve.rate_all(handle, pairs, 60, kill)
    assert killed.is_set()
    assert ratings == [5.0] * len(pairs)


def _pid(actor: dict[str, str]) -> int:
    import ray
    from ray._private.state import actors

    wanted = ray.get_actor(actor["name"], namespace=actor["namespace"])._actor_id.hex()
    return int(actors(wanted)["Pid"])


def test_serve_that_runs_already_is_left_running() -> None:
    from ray import serve as ray_serve

    ray_serve.start(proxy_location="Disabled")
    try:
        with serve.served(UniformSettings(name="uniform")) as handle:
            assert serve.rate_all(handle, [(Concept("a"), Concept("b"))], 60) == [5.0]
        assert cluster_has_serve()
        assert not ray_serve.status().applications
    finally:
        ray_serve.shutdown()
