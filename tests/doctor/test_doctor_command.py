"""``megu doctor`` as a user gives it: words, output, exit status; one machine, and a cluster with a broken node."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mounts import NAMESPACE, mounts_allowed

from megu_dist.cli import main
from megu_dist.doctor.commands import HELP

QUIET = {"RAY_enable_worker_prestart": "0", "RAY_prestart_worker_first_driver": "0"}
SHADOW = "Metadata-Version: 2.1\nName: transformers\nVersion: 5.19.0\n"
AHEAD = "import time\ntrue_time = time.time\ntime.time = lambda: true_time() + 300\n"


def megu(*words: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "megu_dist.cli", "doctor", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | QUIET | (env or {}), timeout=250)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--adress", "auto"], ["--adress", "'--address'"]),
        (["--address"], ["--address needs a value"]),
        (["--storage", "s3://bucket/runs"], ["s3://bucket/runs", "folder"]),
        (["run.dirr=x"], ["'run.dirr'", "'run.dir'"]),
        (["storage"], ["'storage'", "key=value"]),
    ],
)
def test_wrong_words(words: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["doctor", *words])
    told = capsys.readouterr().err
    assert stop.value.code == 2
    assert all(part in told for part in parts)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["doctor", "--help"])
    assert not stop.value.code
    assert capsys.readouterr().out.strip() == HELP


def test_one_machine_and_a_cluster_that_is_not_there(tmp_path: Path) -> None:
    """The cluster is the failure; this machine is looked at all the same, and its folder left as it was."""
    done = megu("--address", "127.0.0.1:1", f"run.dir={tmp_path / 'runs'}", "--json")
    assert done.returncode == 1, done.stderr
    told = json.loads(done.stdout)
    assert told["worst"] == "fail"
    assert told["nodes"] == ["this machine"]
    by_check = {one["check"]: one for one in told["findings"]}
    assert "127.0.0.1:1" in by_check["cluster"]["text"]
    assert by_check["cluster"]["mend"]
    assert by_check.keys() >= {"versions", "gpus", "storage", "operators", "disks", "shared memory", "ports"}
    assert by_check["storage"]["level"] == "ok"
    assert not list(tmp_path.iterdir())


def test_a_failure_is_told_in_lines(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = megu("--storage", tmp_path / "file" / "runs")
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("fail storage: cannot write"))
    assert lines[at + 1].strip().startswith("mend: ")
    assert lines[-1].startswith("this machine: ")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A head, and one node with another transformers, GPUs that are none, a clock that is ahead, a disk of its own."""
    from ray.cluster_utils import Cluster

    root = tmp_path_factory.mktemp("doctor")
    storage, shadow = root / "runs", root / "shadow"
    storage.mkdir()
    (shadow / "transformers-5.19.0.dist-info").mkdir(parents=True)
    (shadow / "transformers-5.19.0.dist-info" / "METADATA").write_text(SHADOW)
    (shadow / "sitecustomize.py").write_text(AHEAD)
    before = {name: os.environ.get(name) for name in QUIET}
    os.environ |= QUIET
    made = Cluster()
    made.add_node(num_cpus=0, object_store_memory=2**28, include_dashboard=False)
    start = f"{sys.executable} -m ray.scripts.scripts start --address={made.address} --block --num-cpus=1 --num-gpus=2"
    start += " --object-store-memory=100000000 --disable-usage-stats"
    own_disk = [*NAMESPACE, "sh", "-c", f"mount -t tmpfs none {storage} && exec {start}"]
    with (root / "node.log").open("w") as log:
        node = subprocess.Popen(own_disk if mounts_allowed() else start.split(), start_new_session=True,
                                env=os.environ | {"PYTHONPATH": str(shadow)}, stdout=log, stderr=log)  # fmt: skip
        try:
            _wait(made, 2, root / "node.log")
            yield made.address, storage
        finally:
            os.killpg(node.pid, signal.SIGTERM)
            node.wait(30)
            made.shutdown()
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def _wait(cluster: Any, nodes: int, log: Path) -> None:
    import time

    end = time.monotonic() + 90
    while sum(node["Alive"] for node in cluster.global_state.node_table()) < nodes:
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.5)


def test_a_cluster_with_a_broken_node(cluster: tuple[str, Path]) -> None:
    address, storage = cluster
    done = megu("--address", address, "--storage", storage, "--json")
    assert done.returncode == 1, done.stderr
    told = json.loads(done.stdout)
    head, broken = told["nodes"]
    assert head.endswith("(head)")
    mine = {one["text"]: one for one in told["findings"] if one["nodes"] == [broken] and one["level"] == "fail"}

    def one(part: str) -> dict[str, Any]:
        return next(finding for text, finding in mine.items() if part in text)

    assert "transformers 5.19.0" in one("outside of")["text"]
    assert one("transformers differs")["mend"]
    assert "5 minutes ahead" in one("clock")["text"]
    assert "torch can use 0" in one("Ray counts 2 GPUs")["text"]
    if mounts_allowed():
        assert head in one("is another folder than on")["text"]
    at_head = {f["check"] for f in told["findings"] if f["level"] == "fail" and head in f["nodes"]}
    assert at_head <= {"auth", "storage"}  # what a token's file of this user, and each other's folder, give
    assert not list(storage.iterdir())
