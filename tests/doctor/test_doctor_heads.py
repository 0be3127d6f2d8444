"""``megu doctor`` at real heads: one whose job server anybody may use, and one that asks for a token."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
OWN_NETWORK = [
    "unshare",
    "--net",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
]  # nobody else reaches the open ports
# Starts a head, waits for its job server, and gives two looks at it: with the head's environment, and with another.
SCRIPT = """
set -e
ip link set lo up
PATH=$(dirname {python}):$PATH
ray start --head --block --num-cpus=1 --port=6379 --dashboard-host={host} --node-ip-address=127.0.0.1 \
    --temp-dir={ray} --object-store-memory=100000000 --disable-usage-stats > {folder}/head.log 2>&1 &
for i in $(seq 240); do (exec 3<> /dev/tcp/127.0.0.1/8265) 2> /dev/null && break; sleep 0.5; done
sleep 3
look="{python} -m megu_dist.cli doctor --address 127.0.0.1:6379 --storage {folder}/runs --json"
$look > {folder}/own.json || true
RAY_AUTH_MODE={other} $look > {folder}/other.json || true
"""


def looks(folder: Path, mode: str, host: str, other: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the doctor says of a head that was started in ``mode``, in that mode and in the ``other``."""
    token = folder / "token"
    token.touch(0o600)
    token.write_text("0123456789abcdef" * 4)
    given = {"RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN_PATH": str(token), "RAY_enable_worker_prestart": "0"}
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as ray:  # short, for the names of Ray's sockets
        script = SCRIPT.format(python=sys.executable, folder=folder, ray=ray, host=host, other=other)
        command = [*OWN_NETWORK, "bash", "-c", script]
        try:
            done = subprocess.run(command, env=os.environ | given, capture_output=True, text=True, timeout=280)
        except FileNotFoundError:
            pytest.skip("there is no unshare here")
    if "Operation not permitted" in done.stderr:
        pytest.skip("a network namespace is not allowed here")
    assert done.returncode == 0, done.stderr + (folder / "head.log").read_text()
    own, others = (json.loads((folder / f"{name}.json").read_text()) for name in ("own", "other"))
    return own, others


def failures(told: dict[str, Any], check: str) -> list[str]:
    return [one["text"] for one in told["findings"] if one["check"] == check and one["level"] == "fail"]


def test_a_head_that_anybody_may_use(tmp_path: Path) -> None:
    own, _ = looks(tmp_path, "disabled", "0.0.0.0", "disabled")
    (told,) = failures(own, "auth")
    assert "listen on 0.0.0.0" in told
    assert "any code" in told


def test_a_head_that_asks_for_a_token(tmp_path: Path) -> None:
    """Wherever it listens; who has none learns that, and its own machine's findings."""
    own, other = looks(tmp_path, "token", "0.0.0.0", "disabled")
    assert not failures(own, "auth")
    assert not failures(own, "cluster")
    assert [one["level"] for one in own["findings"] if one["check"] == "auth"] == ["ok"]
    (told,) = failures(other, "cluster")
    assert "token" in told
    assert other["nodes"] == ["this machine"]
