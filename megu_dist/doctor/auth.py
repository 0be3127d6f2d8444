"""Who may use the cluster: token mode, the token's file, and a dashboard (with its job server) that asks for none.

The token itself is neither read nor sent.
"""

from __future__ import annotations

from megu_dist.doctor.base import FAIL, OK, WARN, Asked, Facts, Finding, Node, Seen
from megu_dist.doctor.ports import look as listeners

LOOPBACK = ("127.", "::1")
PRIVATE_S = 3.0  # for an answer of the dashboard


def look(node: Node) -> Facts:
    """The environment's word on authentication, the token's file, and what the dashboard says to a stranger."""
    import os
    from pathlib import Path

    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    file: Facts = {"path": str(path)}
    try:
        status = path.stat()
        file |= {"mode": status.st_mode & 0o777, "empty": status.st_size == 0, "owner": status.st_uid}
    except OSError as error:
        file |= {"error": error.strerror}
    return {
        "mode": os.environ.get("RAY_AUTH_MODE", "").lower(),
        "variable": bool(os.environ.get("RAY_AUTH_TOKEN")),
        "user": os.getuid(),
        "file": file,
        "dashboard": _dashboard(node),
    }


def _dashboard(node: Node) -> Facts | None:
    """Addresses that it listens on, and whether it answers without a token; none: there is no dashboard here."""
    import urllib.error
    import urllib.request

    port = node.ports.get("dashboard")
    found = [one["address"] for one in listeners(node).get("dashboard", [])]
    if not found:
        return None
    host = "127.0.0.1" if found[0] in ("0.0.0.0", "::") else found[0]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}/api/jobs/"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=PRIVATE_S) as answer:
            is_open: bool | None = answer.headers.get_content_type() == "application/json"
    except urllib.error.HTTPError as error:
        is_open = False if error.code in (401, 403) else None
    except (OSError, ValueError):
        is_open = None
    return {"addresses": found, "port": port, "open": is_open}


def judge(seen: Seen, asked: Asked) -> list[Finding]:
    """On one machine without a cluster, tokens are what the next ``ray start`` would use: worth a warning, no more."""
    found = []
    for name, facts in seen.items():
        found += [*_mode(facts, name, asked.cluster), *_file(facts, name, asked.cluster), *_open(facts, name)]
    if found:
        return found
    return [Finding("auth", OK, "tokens are on" if asked.cluster else "no token that others could read")]


def _mode(facts: Facts, name: str, cluster: bool) -> list[Finding]:
    mend = "export RAY_AUTH_MODE=token on every node and client, then start Ray again (docs/cluster.md, Security)"
    if facts["mode"] == "token":
        return []
    if facts["mode"] == "disabled":
        told = "RAY_AUTH_MODE=disabled: whoever reaches Ray's ports can run any code"
        return [Finding("auth", WARN, told, mend, (name,))]
    if cluster:
        told = "RAY_AUTH_MODE is not set: whether tokens are asked for depends on how each process was started"
        return [Finding("auth", WARN, told, mend, (name,))]
    return []  # a Ray that megu starts for itself turns tokens on


def _file(facts: Facts, name: str, cluster: bool) -> list[Finding]:
    file, wanted = facts["file"], facts["mode"] == "token"
    if facts["variable"]:
        return []
    if "error" in file:
        if not wanted:
            return []
        told = f"RAY_AUTH_MODE=token, and the token's file {file['path']} cannot be read: {file['error']}"
        mend = f"copy the head's token to {file['path']}, or make one: ray get-auth-token --generate"
        return [Finding("auth", FAIL, told, mend, (name,))]
    if file["empty"]:
        mend = "ray get-auth-token --generate"
        return [Finding("auth", FAIL if wanted else WARN, f"the token's file {file['path']} is empty", mend, (name,))]
    if file["mode"] & 0o077 and facts["mode"] != "disabled":
        told = f"other users can read the token: {file['path']} has mode {file['mode']:o}"
        level = FAIL if wanted or cluster else WARN
        return [Finding("auth", level, told, f"chmod 600 {file['path']}", (name,))]
    return []


def _open(facts: Facts, name: str) -> list[Finding]:
    board = facts["dashboard"]
    if board is None or not board["open"]:
        return []
    told = f"the dashboard and job server at port {board['port']} ask for no token"
    mend = "export RAY_AUTH_MODE=token and start the head again"
    if all(address.startswith(LOOPBACK) for address in board["addresses"]):
        told += ": every user of this machine can run any code in the cluster"
        return [Finding("auth", WARN, told, mend, (name,))]
    told += f" and listen on {', '.join(sorted(set(board['addresses'])))}: whoever reaches them can run any code"
    mend = f"ray start --head without --dashboard-host, reached through a tunnel; and {mend}"
    return [Finding("auth", FAIL, told, mend, (name,))]
