"""Ports that a cluster uses: free, or used by whom."""

from __future__ import annotations

from megu_dist.doctor.base import OK, WARN, Asked, Facts, Finding, Node, Seen

USUAL = {"dashboard": 8265, "GCS": 6379, "Serve": 8000}
OTHER = {  # what to do where something else has the port
    "dashboard": "ray start --head --dashboard-port=N (and --address http://127.0.0.1:N for megu submit)",
    "GCS": "ray start --head --port=N (and run.address=HOST:N)",
    "Serve": "nothing for megu, whose oracles use no port; for your own applications: serve start --http-port N",
}


def look(node: Node) -> Facts:
    """By service: each address that something listens on at its port, with the process, as far as this user may see."""
    import psutil

    listening = [one for one in psutil.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
    return {
        service: [
            {"address": one.laddr.ip, "pid": one.pid, "process": _process(one.pid)}
            for one in listening
            if one.laddr.port == port
        ]
        for service, port in node.ports.items()
    }


def _process(pid: int | None) -> str | None:
    import psutil

    if pid is None:
        return None
    try:
        words = psutil.Process(pid).cmdline()
    except psutil.Error:
        return None
    return " ".join(words)[:300]


def of_ray(process: str | None) -> bool:
    """Whether a command line is one of Ray's own processes."""
    return process is not None and any(word in process for word in ("gcs_server", "raylet", "ray/dashboard", "ray::"))


def judge(seen: Seen, asked: Asked) -> list[Finding]:
    """Only the head listens on the ports of GCS and dashboard; a Serve proxy may run on any node."""
    found, free = [], []
    for name, facts in seen.items():
        node = asked.nodes[name]
        for service, port in node.ports.items():
            if asked.cluster and not node.head and service != "Serve":
                continue
            if facts[service]:
                found.append(_used(service, port, facts[service][0], name, asked.cluster))
            elif asked.cluster and service == "dashboard":
                told = f"no dashboard at port {port}: `megu submit` needs its job server"
                mend = "start the head with ray start --head --include-dashboard=true"
                found.append(Finding("ports", WARN, told, mend, (name,)))
            else:
                free.append(f"{port} ({service})")
    if free:
        found.append(Finding("ports", OK, f"free: {', '.join(dict.fromkeys(free))}"))
    return found


def _used(service: str, port: int, listener: Facts, name: str, cluster: bool) -> Finding:
    process = listener["process"]
    if of_ray(process):
        told = f"{port} ({service}) is used by Ray" + (
            "" if cluster else ": a cluster runs here, `megu doctor --address auto` checks it"
        )
        return Finding("ports", OK, told, "", (name,))
    who = f"process {listener['pid']}: {_short(process)}" if process else "a process of another user"
    return Finding("ports", WARN, f"{port} ({service}) is used by {who}", OTHER[service], (name,))


def _short(process: str) -> str:
    return process if len(process) <= 60 else f"{process[:60]}…"
