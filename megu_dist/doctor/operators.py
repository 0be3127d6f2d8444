"""DeepSpeed's operators: that it works without compiled ones, and locks that a killed build has left.

torch builds an operator under ``<torch_extensions>/<name>``; whoever finds ``lock`` there waits, for ever, until it is
gone (``torch/utils/file_baton.py``). The process that builds keeps the file open, so a lock that nobody has open is stale.
"""

from __future__ import annotations

from typing import Any

from megu_dist.doctor.base import FAIL, OK, WARN, Asked, Facts, Finding, Node, Seen, duration

SECONDS = 120
YOUNG_S = 600.0  # a lock so young may belong to another machine that shares the folder
# Asks for the operator that init_distributed asks for, after it was switched off the way the engine does that.
SWITCHED_OFF = """
import json
import deepspeed, deepspeed.ops
deepspeed.ops.__compatible_ops__ = {}
from deepspeed.comm.torch import build_shm_op
print(json.dumps({"deepspeed": deepspeed.__version__, "built": build_shm_op() is not None}))
"""


def look(node: Node) -> Facts:
    """Whether DeepSpeed comes up without building anything, and each lock: path, identity, age, holders."""
    return {"deepspeed": _deepspeed(), "locks": _locks()}


def _deepspeed() -> Facts:
    import json
    import os
    import subprocess
    import sys
    import tempfile

    with tempfile.TemporaryDirectory() as folder:  # what it might build, and no stale lock to wait on
        env = {**os.environ, "TORCH_EXTENSIONS_DIR": folder, "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
        command = [sys.executable, "-c", SWITCHED_OFF]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=env)
        except subprocess.TimeoutExpired:
            return {"error": f"import deepspeed took more than {SECONDS} s"}
        built = any(os.scandir(folder))
    if done.returncode != 0:
        return {"error": (done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"])[-1]}
    facts: Facts = json.loads(done.stdout.strip().splitlines()[-1])
    return {**facts, "built": facts["built"] or built}


def _locks() -> list[Facts]:
    import os
    import time
    from pathlib import Path

    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or f"{home}/torch_extensions").expanduser().resolve()
    found = []
    for path in [*root.glob("*/lock"), *root.glob("*/*/lock")]:
        status = path.stat()
        identity = [str(path), status.st_ino, status.st_mtime_ns]  # the same on nodes that share the folder
        found.append({"path": str(path), "identity": identity, "age": time.time() - status.st_mtime,
                      "holders": _holders(path)})  # fmt: skip
    return found


def _holders(path: Any) -> list[int]:
    """Processes of this machine that have the file open, as far as this user may see."""
    import os
    from pathlib import Path

    wanted, found = path.stat(), []
    for folder in Path("/proc").glob("[0-9]*/fd"):
        try:
            opened = [os.stat(f"{folder}/{name}") for name in os.listdir(folder)]
        except OSError:  # gone, or another user's
            continue
        if any((one.st_dev, one.st_ino) == (wanted.st_dev, wanted.st_ino) for one in opened):
            found.append(int(folder.parent.name))
    return found


def judge(seen: Seen, asked: Asked) -> list[Finding]:
    """DeepSpeed by node; a lock once, with all nodes that see it, held if a process of any of them holds it."""
    found, working = [], True
    for name, facts in seen.items():
        deepspeed = facts["deepspeed"]
        working = working and not deepspeed.get("built", True)
        if "error" in deepspeed:
            mend = "install it again (requirements.lock), or use engine=ddp"
            told = f"deepspeed cannot be used: {deepspeed['error']}"
            found.append(Finding("operators", FAIL, told, mend, (name,)))
        elif deepspeed["built"]:
            told = (
                f"deepspeed {deepspeed['deepspeed']} compiles an operator when it starts, though megu switches that off"
            )
            mend = "use the version in requirements.lock, or give each node a compiler and ninja"
            found.append(Finding("operators", WARN, told, mend, (name,)))
    locks: dict[tuple[Any, ...], list[tuple[str, Facts]]] = {}
    for name, facts in seen.items():
        for lock in facts["locks"]:
            locks.setdefault(tuple(lock["identity"]), []).append((name, lock))
    found += [_lock(views, working) for views in locks.values()]
    return found or [Finding("operators", OK, "deepspeed works without compiled operators; no build lock")]


def _lock(views: list[tuple[str, Facts]], working: bool) -> Finding:
    nodes, (_, lock) = tuple(name for name, _ in views), views[0]
    holders = [f"process {pid} on {name}" for name, one in views for pid in one["holders"]]
    if holders:
        return Finding("operators", OK, f"{lock['path']}: a build is going on ({', '.join(holders)})", "", nodes)
    told = f"{lock['path']}: a lock, {duration(lock['age'])} old, that no process holds"
    if lock["age"] < YOUNG_S:
        mend = f"if no other machine that shares the folder is building: rm {lock['path']}"
        return Finding("operators", WARN, told, mend, nodes)
    told += "; whatever needs this operator waits for ever" + (" (megu itself needs none)" if working else "")
    return Finding("operators", WARN if working else FAIL, told, f"rm {lock['path']}", nodes)
