"""Clusters that are really started: three nodes in network namespaces, one of which goes away, and the Slurm script."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from launch_files import CLUSTER

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
NAME = "megutest"
HEAD = "10.213.9"
BIN = Path(sys.executable).parent
SMALL_NET = ["model.width=8", "model.stage_blocks=[1,1]", "model.num_channels=1", "model.image_size=8"]


@pytest.fixture
def local() -> Iterator[tuple[Callable[..., str], dict[str, str]]]:
    """``cluster/local.sh WORDS`` of a cluster of this test's own, and the environment that `megu submit` needs."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    folder = Path("/tmp") / f"{NAME}-{os.getpid()}"  # short: Ray's sockets have paths of at most 107 characters
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "MEGU_LOCAL_NAME": NAME}
    environment |= {"MEGU_LOCAL_DIR": str(folder), "MEGU_LOCAL_NET": HEAD}
    environment.pop("RAY_ADDRESS", None)

    def call(*words: str) -> str:
        done = subprocess.run([str(CLUSTER / "local.sh"), *words], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    try:
        call("3")
        assert (folder / "token").stat().st_mode & 0o777 == 0o600
        told = dict(word.split("=", 1) for word in call("env").split()[1:])
        yield call, environment | told
    finally:
        call("stop")
    assert not namespaces()
    assert f"{NAME}br0" not in subprocess.run(["ip", "link"], capture_output=True, text=True).stdout
    assert not folder.exists()
    assert not running(str(folder))


def namespaces() -> list[str]:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    return [line.split()[0] for line in listed.splitlines() if line.startswith(f"{NAME}-")]


def running(mark: str) -> list[str]:
    """Command lines of the processes that have ``mark`` in theirs or in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes()
                if mark.encode() in command + (entry / "environ").read_bytes():
                    found.append(command.decode().replace("\0", " "))
    return found


def trains(node: int) -> bool:
    """Whether a training worker runs on the node."""
    pids = subprocess.run(["ip", "netns", "pids", f"{NAME}-{node}"], capture_output=True, text=True).stdout.split()
    for pid in pids:
        with contextlib.suppress(OSError):
            if b"RayTrainWorker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return True
    return False


def cut(node: int, state: str) -> None:
    """Takes the node's cable out (``down``), or puts it in again (``up``)."""
    subprocess.run(["ip", "link", "set", f"{NAME}-{node}", state], check=True)


@pytest.mark.parametrize("how", ["taken away", "cut off"])
def test_a_job_ends_well_although_a_node_is_lost(
    how: str, local: tuple[Callable[..., str], dict[str, str]], tmp_path: Path
) -> None:
    """With all its processes at once; or the network between it and the others is gone, and comes back at the end."""
    call, environment = local
    shared = ["--shared", str(tmp_path), "data=digits", *SMALL_NET, "train.precision=fp32", "engine=ddp"]
    two = ["train.num_workers=2", "train.num_cpus=3"]  # of four: the workers are on two of the three nodes

    def submit(*words: str) -> subprocess.Popen[str]:
        return subprocess.Popen([str(BIN / "megu"), "submit", *words], env=environment, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip

    trained = submit("train", *shared, "train.epochs=4", "train.lr=0.1", "train.batch_size=32", "run.name=original")
    output = trained.communicate(timeout=400)[0]
    assert trained.returncode == 0, output
    words = ["model.path=runs/original/model", "forget.classes=[three]", "train.epochs=16", "run.name=megu"]
    job = submit("unlearn", *shared, *two, *words)
    lines: list[str] = []
    removed: list[int] = []
    reader = threading.Thread(target=lambda: lines.extend(iter(job.stdout.readline, "")), daemon=True)  # type: ignore[union-attr]
    reader.start()
    end = time.monotonic() + 600
    while job.poll() is None and time.monotonic() < end:
        at_work = [line for line in lines if line.startswith("finetune: ") and "images," in line]
        if len(at_work) >= 2 and not removed:
            removed.append(next(node for node in (2, 3) if trains(node)))
            call("remove", str(removed[0])) if how == "taken away" else cut(removed[0], "down")
        time.sleep(0.5)
    reader.join(10)
    output = "".join(lines)
    assert job.returncode == 0, output
    assert removed, output  # it was in mid-run
    if how == "cut off":
        cut(removed[0], "up")  # it finds out that it was given up, and ends what it went on with
        end = time.monotonic() + 120
        while trains(removed[0]):
            assert time.monotonic() < end
            time.sleep(1)
    assert (f"{NAME}-{removed[0]}" in namespaces()) == (how == "cut off")
    assert (tmp_path / "runs" / "megu" / "model" / "model.safetensors").is_file()
    assert "→ 0.0" in output, output


def test_the_slurm_script_runs_a_verb_and_leaves_nothing(tmp_path: Path) -> None:
    """Slurm's own commands are stood in for by ones that run on this machine; Ray and megu are real."""
    commands = {
        "scontrol": "echo this-machine",
        "srun": 'while [[ $1 == --* ]]; do shift; done; [[ $1 == hostname ]] && { echo 127.0.0.1; exit; }; exec "$@"',
    }
    for name, text in commands.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": str(10**6 + os.getpid()), "SLURM_JOB_NODELIST": "x", "SLURM_CPUS_PER_TASK": "4"}
    environment = {**os.environ, **slurm, "PATH": f"{tmp_path}:{os.environ['PATH']}", "MEGU_BIN": str(BIN)}
    environment["MEGU_SLURM_DIR"] = str(tmp_path / "private")
    environment["RAY_enable_worker_prestart"] = "0"
    environment.pop("RAY_ADDRESS", None)
    words = [
        "evaluate",
        "data=digits",
        f"run.dir={tmp_path / 'runs'}",
        "forget.classes=[nosuch]",
        "model.path=/nowhere",
    ]
    done = subprocess.run(
        [str(CLUSTER / "slurm.sh"), *words], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2, done.stdout + done.stderr  # the verb's own status
    assert "nosuch" in done.stderr
    assert "the cluster is not up" not in done.stderr
    assert list((tmp_path / "private").iterdir()) == []  # the token is gone
    time.sleep(5)
    assert not running(f"/tmp/ray-{slurm['SLURM_JOB_ID']}")
    shutil.rmtree(f"/tmp/ray-{slurm['SLURM_JOB_ID']}", ignore_errors=True)
