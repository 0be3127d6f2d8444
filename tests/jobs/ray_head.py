"""A real Ray head with its job server on loopback and token authentication on, for the tests of jobs."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Head:
    """Address of the job server, and the environment that may talk to it."""

    address: str
    environment: dict[str, str]


def free_port() -> int:
    """Of those that nothing is given without asking for it: another Ray that starts meanwhile takes none of them."""
    while True:
        port = secrets.choice(range(20000, 32000))
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


@contextlib.contextmanager
def head(folder: Path, extra: dict[str, str] | None = None) -> Iterator[Head]:
    """Runs in ``folder``; ends with every process that it started."""
    place = Path(tempfile.mkdtemp(prefix="mj-", dir="/tmp"))  # paths of sockets may have 107 characters
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    gcs, port, agent = free_port(), free_port(), free_port()  # the agent's usual port may be another Ray's
    client = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")}
    environment |= client | {"RAY_enable_worker_prestart": "0", "RAY_prestart_worker_first_driver": "0"} | (extra or {})
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    words = ["start", "--head", "--block", "--num-cpus=4", f"--port={gcs}", f"--dashboard-port={port}"]
    words += [f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={free_port()}"]
    words += ["--node-ip-address=127.0.0.1", f"--temp-dir={place}", "--object-store-memory=100000000"]
    log = (folder / "head.log").open("w")
    process = subprocess.Popen([sys.executable, "-m", "ray.scripts.scripts", *words, "--disable-usage-stats"],
                               env=environment, stdout=log, stderr=log, start_new_session=True)  # fmt: skip
    try:
        _wait(port, process, folder)
        yield Head(f"http://127.0.0.1:{port}", client)
    finally:
        _end(process, folder)
        log.close()
        shutil.rmtree(place, ignore_errors=True)


def _wait(port: int, process: subprocess.Popen[bytes], folder: Path) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        assert process.poll() is None, (folder / "head.log").read_text()[-2000:]
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.3)
    raise TimeoutError((folder / "head.log").read_text()[-2000:])


def processes_of(folder: Path) -> list[int]:
    """Ids of the processes that have ``folder`` in their command line or environment."""
    found, mark = [], str(folder).encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if mark in (entry / "cmdline").read_bytes() or mark in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
    return found


def _end(process: subprocess.Popen[bytes], folder: Path) -> None:
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(20)
    for number in processes_of(folder):
        with contextlib.suppress(OSError):
            os.kill(number, signal.SIGKILL)
    process.wait(20)


class Cable:
    """A connection that can be pulled: forwards a port of its own to ``port``."""

    def __init__(self, port: int) -> None:
        self._to, self._pairs, self._down = port, [], False  # type: ignore[var-annotated]
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        self.accepted = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def pull(self) -> None:
        """Breaks what is connected; nothing connects until :meth:`plug`."""
        self._down = True
        for one in [one for pair in self._pairs for one in pair]:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._pairs.clear()

    def plug(self) -> None:
        self._down = False

    def close(self) -> None:
        self.pull()
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self._server.accept()
            except OSError:
                return
            if self._down:
                here.close()
                continue
            there = socket.create_connection(("127.0.0.1", self._to))
            self.accepted += 1
            self._pairs.append((here, there))
            for a, b in ((here, there), (there, here)):
                threading.Thread(target=_pump, args=(a, b), daemon=True).start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
