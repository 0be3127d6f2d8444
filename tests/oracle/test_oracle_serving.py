"""An oracle that stays: `megu oracle serve` and `megu oracle stop`, on a cluster and without one."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import thousand

from megu_dist.config.compose import load
from megu_dist.errors import UserError
from megu_dist.oracle import cluster_has_serve, keep, serve
from megu_dist.oracle.backends.embedding import EmbeddingSettings
from megu_dist.oracle.backends.uniform import UniformSettings

NAMES = ["cat", "dog", "T-shirt/top", "ankle boot", "garment", "animal"]
# A cluster's token: said to both sides, as only one of them looks for a token that some earlier Ray has left.
AUTHENTICATION = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 2}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The words of a request for the cat, among six classes."""
    folder = tmp_path_factory.mktemp("verbs")
    thousand.write(folder / "train.parquet", NAMES)
    thousand.write(folder / "test.parquet", NAMES, 1)
    data = ["data=parquet", f"data.path={folder / 'train.parquet'}", f"data.test_path={folder / 'test.parquet'}"]
    return [*data, "forget.classes=[cat]", f"run.dir={folder / 'runs'}"]


@pytest.fixture
def connected(ray_local: None) -> Iterator[Any]:
    """Settings of a job on a cluster (here the Ray of the tests), with Serve running."""
    from ray import serve as ray_serve

    ray_serve.start(proxy_location="Disabled")
    yield load(["data=digits", "oracle=uniform", "run.address=auto"]).settings
    ray_serve.shutdown()


def running() -> set[str]:
    from ray import serve as ray_serve

    return set(ray_serve.status().applications)


def test_stop_leaves_what_it_did_not_start(connected: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from ray import serve as ray_serve

    name = serve.app_name(connected.oracle)
    fills_own, others = f"{name}-0123abcd", "somebody-elses"
    for app in (fills_own, others):
        ray_serve.run(serve.application(UniformSettings(name="uniform")), name=app, route_prefix=None)
    keep.keep(connected)
    assert running() == {name, fills_own, others}
    assert f"{name} serves uniform" in capsys.readouterr().out
    before = ray_serve.status().applications[name].last_deployed_time_s
    keep.keep(connected)  # a second time: nothing is started anew
    assert ray_serve.status().applications[name].last_deployed_time_s == before
    assert keep.stop(connected) == [name]
    assert running() == {fills_own, others}
    assert keep.stop(connected) == []


def test_an_oracle_that_does_not_come_up_leaves_nothing_behind(connected: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')  # no weights
    connected.oracle = EmbeddingSettings(name="embedding", path=str(tmp_path))
    with pytest.raises(UserError, match="does not start"):
        keep.keep(connected)
    assert running() == set()


def test_stop_without_serve(ray_local: None) -> None:
    assert not cluster_has_serve()
    assert keep.stop(load(["data=digits", "run.address=auto"]).settings) == []


@pytest.fixture
def cluster() -> Iterator[tuple[str, Path]]:
    """A Ray head node of its own: its address, and its folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="megu-ray-", dir="/tmp"))  # sockets in there: the path must be short
    environment = {**os.environ, **AUTHENTICATION, "RAY_enable_worker_prestart": "0"}
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}"]
    command += [f"--temp-dir={folder}", "--num-cpus=8", "--include-dashboard=false", "--disable-usage-stats"]
    command += [f"--object-store-memory={300 << 20}"]
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            end = time.monotonic() + 90
            while "Ray runtime started" not in (folder / "head.log").read_text():
                assert head.poll() is None, (folder / "head.log").read_text()
                assert time.monotonic() < end
                time.sleep(0.2)
            yield f"127.0.0.1:{port}", folder
        finally:
            family = [head, *psutil.Process(head.pid).children(recursive=True)]
            for process in family:  # asked politely, they take half a minute
                process.kill()
            head.wait(30)
            psutil.wait_procs(family[1:], timeout=30)
            shutil.rmtree(folder, ignore_errors=True)


def start(address: str, *given: str, **environment: str) -> subprocess.Popen[str]:
    """``megu oracle …`` as a process of its own, with what it prints on a pipe."""
    command = [
        sys.executable,
        "-m",
        "megu_dist.cli",
        "oracle",
        *given,
        *([f"run.address={address}"] if address else []),
    ]
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_A")}  # address, authentication
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**own, **environment}
    )


@pytest.mark.slow
def test_an_oracle_on_a_cluster_serves_several_jobs_until_it_is_stopped(
    cluster: tuple[str, Path], words: list[str], tmp_path: Path
) -> None:
    address, folder = cluster

    def run(*given: str) -> str:
        process = start(address, *given, **AUTHENTICATION)
        output = process.communicate(timeout=200)[0]
        assert process.returncode == 0, output
        return output

    def replicas() -> list[Path]:
        return list((folder / "session_latest" / "logs" / "serve").glob("replica_*"))

    served = run("serve", "oracle=embedding", f"run.dir={tmp_path}")
    assert f":{address.split(':')[1]} use it" in served
    assert "it stays until `megu oracle stop`" in served
    assert len(replicas()) == 1
    each = [["fill", *words, f"run.dir={tmp_path}", f"run.name={n}", f"forget.classes=[{n}]"] for n in ("cat", "dog")]
    jobs = [start(address, *given, **AUTHENTICATION) for given in each]
    outputs = [process.communicate(timeout=200)[0] for process in jobs]
    assert [process.returncode for process in jobs] == [0, 0], outputs
    assert len(replicas()) == 1  # both used the one that was there
    found = [json.loads((tmp_path / name / "transition.json").read_text()) for name in ("cat", "dog")]
    assert found[0]["ratings"][0][1] == pytest.approx(found[1]["ratings"][0][0], abs=1e-4)
    assert 9 <= sum(data["calls"] for data in found) <= 10  # they share the question about cat and dog
    assert "stopped: megu-oracle-embedding-" in run("stop")
    assert "no oracle of megu is running there" in run("stop")


@pytest.mark.slow
def test_an_oracle_of_its_own_ray_serves_those_who_do_as_it_says(words: list[str], tmp_path: Path) -> None:
    server = start("", "serve", "oracle=uniform", f"run.dir={tmp_path}")
    try:
        assert server.stdout is not None
        said = next(line for line in server.stdout if "use it" in line)
        found = re.search(r"run\.address=(\S+) use it, with (\w+)=(\w+) in their environment", said)
        assert found is not None, said
        job = start(
            found[1], "fill", "oracle=uniform", *words, f"run.dir={tmp_path}", "run.name=r", **{found[2]: found[3]}
        )
        output = job.communicate(timeout=200)[0]
        assert job.returncode == 0, output
        assert json.loads((tmp_path / "r" / "transition.json").read_text())["calls"] == 5
    finally:
        server.terminate()
    rest = server.communicate(timeout=60)[0]
    assert server.returncode == 130, rest
