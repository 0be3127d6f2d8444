"""Connects to a Ray cluster and lists its nodes; what is wrong when that fails."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

from megu_dist.doctor.base import FAIL, Finding, Node
from megu_dist.doctor.ports import USUAL

CONNECT_S = 10.0
TOKEN = "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=FILE, with the token of the cluster"


class Unreachable(Exception):
    """The cluster does not let this process in; ``finding`` says why."""

    def __init__(self, text: str, mend: str) -> None:
        super().__init__(text)
        self.finding = Finding("cluster", FAIL, text, mend)


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Ray's context for the length of the block; a connection that is there is used, and left open."""
    import ray
    from ray.exceptions import AuthenticationError

    mine = not ray.is_initialized()
    if not address.startswith(("auto", "ray://", "local")):
        _answers(address)
    try:
        context = ray.init(address=address, log_to_driver=False, logging_level="error", ignore_reinit_error=True)
    except AuthenticationError:
        raise Unreachable(f"{address} asks for a token, and this is none or another one", TOKEN) from None
    except ConnectionError:
        if address == "auto":
            mend = f"start one (docs/cluster.md), give its address (--address HOST:6379), or its token ({TOKEN})"
            raise Unreachable(f"{address}: no Ray cluster on this machine lets this process in", mend) from None
        told = (
            f"{address} answers, but lets this process not in: its token is missing or another one, or that is no Ray"
        )
        raise Unreachable(told, TOKEN) from None
    except (RuntimeError, ValueError) as error:
        told = " ".join(str(error).split())
        mend = "install the cluster's versions of Python and Ray here (requirements.lock)"
        if "ersion" not in told:
            mend = TOKEN if "token" in told.lower() else "see docs/cluster.md"
        raise Unreachable(f"{address} refuses this process: {told}", mend) from None
    try:
        yield context
    finally:
        if mine:
            ray.shutdown()


def _answers(address: str) -> None:
    """Ray itself would wait for minutes."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_S):
            pass
    except ValueError:
        raise Unreachable(f"{address} is no address", "give --address auto, HOST:6379 or ray://HOST:10001") from None
    except OSError as error:
        mend = "check that the head runs, and that no firewall is between; 6379 is the usual port"
        raise Unreachable(f"nothing answers at {address} ({error.strerror or error})", mend) from None


def describe(context: Any, storage: str, packages: tuple[str, ...]) -> dict[str, tuple[str, Node]]:
    """Id and question of each living node, by a name that tells them apart; the head first."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    alive.sort(key=lambda node: (not _head(node), node["NodeManagerHostname"], node["NodeID"]))
    hosts = [node["NodeManagerHostname"] for node in alive]
    found = {}
    for node in alive:
        host, has = node["NodeManagerHostname"], node["Resources"]
        name = host if hosts.count(host) == 1 else f"{host}-{node['NodeID'][:6]}"
        found[f"{name} (head)" if _head(node) else name] = (
            node["NodeID"],
            Node(
                storage=storage,
                temp_dir=str(PurePosixPath(node["RayletSocketName"]).parents[2]),
                object_store=int(has.get("object_store_memory", 0)),
                gpus=has.get("GPU", 0.0),
                head=_head(node),
                ports=_ports(context),
                packages=packages,
            ),
        )
    return found


def _head(node: dict[str, Any]) -> bool:
    return "node:__internal_head__" in node["Resources"]


def _ports(context: Any) -> dict[str, int]:
    """The usual ones, except where this cluster says otherwise."""
    import ray

    found = dict(USUAL)
    with contextlib.suppress(AttributeError):  # a client (ray://) is not told
        found["GCS"] = int(ray.get_runtime_context().gcs_address.rpartition(":")[2])
    board = str(getattr(context, "dashboard_url", None) or "").rpartition(":")[2]
    if board.isdigit():
        found["dashboard"] = int(board)
    return found
