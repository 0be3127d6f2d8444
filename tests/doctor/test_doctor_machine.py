"""Each check of one machine, with the thing broken for real."""

from __future__ import annotations

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mounts import NAMESPACE, mounts_allowed, small

from megu_dist.doctor import auth, clock, disks, gpus, operators, ports, storage, versions
from megu_dist.doctor.base import FAIL, OK, WARN, Asked, Facts, Finding, Node
from megu_dist.doctor.storage import Share


def found(group: object, node: Node, cluster: bool = False) -> list[Finding]:
    """Looks at this machine, and judges."""
    look: Callable[[Node], Facts] = group.look  # type: ignore[attr-defined]
    return group.judge({"here": look(node)}, Asked(nodes={"here": node}, cluster=cluster))  # type: ignore[attr-defined]


def levels(findings: list[Finding]) -> list[str]:
    return [one.level for one in findings]


def shared(folder: Path) -> list[Finding]:
    share = Share(str(folder), "t0ken", "here")
    facts = share.write()
    facts |= share.read(["here"]) if "error" not in facts else {}
    share.clean()
    return storage.judge({"here": facts}, Asked(nodes={"here": Node(storage=str(folder))}))


def test_a_folder_that_can_be_written_to_is_left_as_it_was(tmp_path: Path) -> None:
    assert levels(shared(tmp_path / "new" / "runs")) == [OK]
    assert list(tmp_path.iterdir()) == []


def test_a_path_under_a_file_cannot_be_a_run_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (one,) = shared(tmp_path / "file" / "runs")
    assert one.level == FAIL
    assert "Not a directory" in one.text
    assert "--storage" in one.mend


def test_a_read_only_disk(tmp_path: Path) -> None:
    with small(tmp_path / "disk", "size=4m,ro") as disk:
        (one,) = shared(disk / "runs")
    assert one.level == FAIL
    assert "Read-only file system" in one.text


def test_a_full_disk(tmp_path: Path) -> None:
    with small(tmp_path / "disk") as disk:
        (disk / "filler").write_bytes(bytes(4 << 20))
        at_run_folder, _, _ = found(disks, Node(storage=str(disk / "runs")))
        at_rays = found(disks, Node(storage="/", temp_dir=str(disk / "ray")))
        (written,) = shared(disk / "runs")
    assert at_run_folder.level == FAIL
    assert "run.dir=DIR" in at_run_folder.mend
    assert any(one.level == FAIL and "RAY_TMPDIR=DIR" in one.mend for one in at_rays)
    assert written.level == FAIL
    assert "No space left" in written.text


def test_a_disk_without_room_for_one_more_file(tmp_path: Path) -> None:
    with small(tmp_path / "disk", "size=1g,nr_inodes=4") as disk:
        for name in "abc":
            (disk / name).touch()
        one = found(disks, Node(storage=str(disk)))[0]
    assert one.level == FAIL
    assert one.text.startswith("no more files")


@pytest.mark.skipif(not mounts_allowed(), reason="a mount namespace is not allowed here")
@pytest.mark.parametrize(("size", "level"), [("32m", FAIL), ("100m", WARN), ("400m", OK)])
def test_shared_memory_smaller_than_the_object_store(size: str, level: str) -> None:
    code = (
        "from megu_dist.doctor import disks; from megu_dist.doctor.base import *\n"
        "node = Node(storage='/', object_store=200 << 20)\n"
        "print(*[f for f in disks.judge({'a': disks.look(node)}, Asked(nodes={'a': node})) if f.check != 'disks'])\n"
    )
    command = f'mount -t tmpfs -o size={size} none /dev/shm && exec {sys.executable} -c "{code}"'
    done = subprocess.run([*NAMESPACE, "sh", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"level='{level}'" in done.stdout
    assert ("--shm-size=1g" in done.stdout) == (level != OK)


def test_a_stale_build_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch takes it in a process that is then killed, the way an impatient user kills a build."""
    folder = tmp_path / "py311_cpu" / "deepspeed_shm_comm"
    folder.mkdir(parents=True)
    lock = folder / "lock"
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    code = (
        "import sys; from torch.utils.file_baton import FileBaton; assert FileBaton(sys.argv[1]).try_acquire()\n"
        "print(1, flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(lock)]
    build = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert build.stdout
    build.stdout.readline()

    def judged(works: bool = True) -> list[Finding]:
        facts = {"deepspeed": {"deepspeed": "0", "built": not works}, "locks": operators._locks()}
        return operators.judge({"here": facts}, Asked(nodes={}))

    assert levels(judged()) == [OK]
    assert f"process {build.pid} on here" in judged()[0].text
    build.kill()
    build.wait()
    (one,) = judged()
    assert one.level == WARN
    assert "no process holds" in one.text
    assert "if no other machine" in one.mend  # young: another machine may be building
    os.utime(lock, (0, 0))
    (one,) = judged()
    assert one.mend == f"rm {lock}"
    assert levels(judged(works=False)) == [WARN, FAIL]  # a DeepSpeed that compiles would wait for it
    subprocess.run(one.mend.split(), check=True)
    assert levels(judged()) == [OK]


def test_a_deepspeed_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deepspeed").mkdir()
    (tmp_path / "deepspeed" / "__init__.py").write_text("raise ImportError('libcudart.so.12: cannot open')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    one = found(operators, Node(storage="/"))[0]
    assert one.level == FAIL
    assert "libcudart.so.12" in one.text
    assert "engine=ddp" in one.mend


def test_a_driver_that_fails_and_a_torch_that_sees_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs in place of ``nvidia-smi``; torch is the real one, which sees as many GPUs as there are."""
    tool = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    torch = gpus._torch()
    have = len(torch["devices"])

    def judged(script: str, ray: float | None) -> Finding:
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
        facts = {"driver": gpus._driver(), "torch": torch}
        (one,) = gpus.judge({"here": facts}, Asked(nodes={"here": Node(storage="", gpus=ray)}))
        return one

    one = judged("echo NVIDIA-SMI has failed because it could not communicate with the driver; exit 9", None)
    assert (one.level, "could not communicate" in one.text, "driver" in one.mend) == (FAIL, True, True)
    one = judged(f"seq {have + 2} | sed s/.*/550.54.15/", None)
    assert one.level == FAIL
    assert f"nvidia-smi counts {have + 2} GPUs, torch can use {have}" in one.text
    one = judged(f"seq {have} | sed s/.*/550.54.15/", have)
    assert one.level == OK


def test_packages_that_are_missing_or_out_of_range(tmp_path: Path) -> None:
    """In a process whose path begins with a folder of other metadata, as a stray ``pip install --target`` leaves."""
    for name, version in (("pyarrow", "12.0"), ("torch", "1.13.1")):
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    code = (
        "import json; from megu_dist.doctor import versions; from megu_dist.doctor.base import Node\n"
        "print(json.dumps(versions.look(Node(storage='', packages=('pyarrow', 'torch', 'not-there')))))"
    )
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    judged = versions.judge({"here": json.loads(done.stdout)}, Asked(nodes={}))
    told = {one.text.split()[0]: one for one in judged}
    assert levels(judged) == [FAIL] * 3
    assert "pyarrow 12.0 is outside of >=17" in told["pyarrow"].text
    assert told["torch"].mend == "pip install 'torch>=2.6'"
    assert "not-there is not installed" in told["not-there"].text


def test_this_installation_is_within_its_own_ranges() -> None:
    assert levels(found(versions, Node(storage="", packages=versions.asked_packages()))) == [OK]


def test_a_used_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (one,) = found(ports, Node(storage="", ports={"GCS": port}))
    assert one.level == WARN
    assert f"{port} (GCS) is used by process {os.getpid()}" in one.text
    assert "ray start --head --port=N" in one.mend
    (one,) = found(ports, Node(storage="", ports={"GCS": port}))
    assert (one.level, one.text) == (OK, f"free: {port} (GCS)")


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A token's file with mode 600 that Ray would use."""
    path = tmp_path / "token"
    path.touch(0o600)
    path.write_text("secret-of-the-cluster")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    return path


def test_a_token_that_others_can_read(token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(storage="")
    assert levels(found(auth, node, cluster=True)) == [OK]
    token.chmod(0o644)
    (one,) = found(auth, node, cluster=True)
    assert (one.level, one.mend) == (FAIL, f"chmod 600 {token}")
    assert "secret" not in json.dumps(auth.look(node))
    monkeypatch.delenv("RAY_AUTH_MODE")
    assert levels(found(auth, node)) == [WARN]  # not in use yet
    assert levels(found(auth, node, cluster=True)) == [WARN, FAIL]
    subprocess.run(one.mend.split(), check=True)
    assert levels(found(auth, node)) == [OK]


def test_a_token_that_is_not_there(token: Path) -> None:
    token.write_text("")
    assert "is empty" in found(auth, Node(storage=""))[0].text
    token.unlink()
    (one,) = found(auth, Node(storage=""))
    assert one.level == FAIL
    assert "No such file" in one.text


@contextmanager
def dashboard(host: str, status: int) -> Iterator[int]:
    """Something that answers requests for jobs as a dashboard does."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(b"[]")

        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer((host, 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.parametrize(
    ("host", "status", "level"),
    [("0.0.0.0", 200, FAIL), ("127.0.0.1", 200, WARN), ("0.0.0.0", 401, OK), ("127.0.0.1", 500, OK)],
)
def test_a_dashboard_that_asks_for_no_token(token: Path, host: str, status: int, level: str) -> None:
    with dashboard(host, status) as port:
        (one,) = found(auth, Node(storage="", ports={"dashboard": port}), cluster=True)
    assert one.level == level
    assert (f"port {port}" in one.text) == (level != OK)


def test_clocks_are_compared_by_the_shortest_way() -> None:
    """A slow answer says little about the other clock, and is no skew."""
    import time

    delays = iter([0.3, 0.3, 0.3, 0.0, 0.3, 0.3, 0.3, 0.3])

    def now() -> float:
        seen = time.time()
        time.sleep(next(delays))
        return seen

    facts = clock.measure(now)
    assert abs(facts["ahead"]) < 0.1
    assert levels(clock.judge({"a": facts}, Asked(nodes={}))) == [OK]
    slow = {"ahead": 3.0, "uncertain": 4.0}
    assert levels(clock.judge({"a": slow}, Asked(nodes={}))) == [OK]
