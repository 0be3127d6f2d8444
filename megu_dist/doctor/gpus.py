"""GPUs: torch sees and can use what Ray counts; the driver."""

from __future__ import annotations

from typing import Any

from megu_dist.doctor.base import FAIL, OK, WARN, Asked, Facts, Finding, Node, Seen

SECONDS = 120
# Runs in a process of its own: a broken driver may crash or hang it, and Ray hides GPUs from a worker that reserved none.
TORCH = """
import json, warnings
import torch
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    devices = []
    for i in range(torch.cuda.device_count()):
        one = {"name": torch.cuda.get_device_name(i)}
        try:
            free, total = torch.cuda.mem_get_info(i)
            one |= {"free": free, "total": total}
            assert torch.ones(1024, device=f"cuda:{i}").sum().item() == 1024
        except Exception as error:
            one["error"] = str(error).splitlines()[0]
        devices.append(one)
    available = torch.cuda.is_available()
print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda or torch.version.hip, "devices": devices,
                  "available": available, "warnings": [str(one.message).splitlines()[0] for one in told]}))
"""


def look(node: Node) -> Facts:
    """What ``nvidia-smi`` and torch see."""
    return {"driver": _driver(), "torch": _torch()}


def _driver() -> Facts:
    import shutil
    import subprocess

    if shutil.which("nvidia-smi") is None:
        return {"gpus": 0, "version": None}
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"gpus": 0, "version": None, "error": str(error)}
    if done.returncode != 0:
        return {"gpus": 0, "version": None, "error": (done.stdout + done.stderr).strip().splitlines()[0]}
    lines = done.stdout.split()
    return {"gpus": len(lines), "version": lines[0] if lines else None}


def _torch() -> Facts:
    import json
    import os
    import subprocess
    import sys
    from pathlib import Path

    visible = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
    began = Path("/proc/self/environ")
    lines = began.read_bytes().decode(errors="replace").split("\0") if began.exists() else []
    first = dict(line.split("=", 1) for line in lines if "=" in line)  # before Ray changed it in this process
    env = {name: value for name, value in os.environ.items() if name not in visible}
    env |= {name: first[name] for name in visible if name in first}
    try:
        done = subprocess.run([sys.executable, "-c", TORCH], capture_output=True, text=True, timeout=SECONDS, env=env)
    except subprocess.TimeoutExpired:
        return {"error": f"import torch and a sum on each GPU took more than {SECONDS} s"}
    if done.returncode != 0:
        return {"error": (done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"])[-1]}
    facts: Facts = json.loads(done.stdout.strip().splitlines()[-1])
    return facts


def judge(seen: Seen, asked: Asked) -> list[Finding]:
    """One finding a node, and one for each GPU that cannot be used."""
    return [finding for name, facts in seen.items() for finding in _judge(facts, asked.nodes[name].gpus, name)]


def _judge(facts: Facts, ray: float | None, name: str) -> list[Finding]:
    torch, driver, where = facts["torch"], facts["driver"], (name,)
    if "error" in torch:
        mend = "install torch again (requirements.lock), in the build that fits this machine"
        return [Finding("gpus", FAIL, f"torch cannot be used: {torch['error']}", mend, where)]
    if "error" in driver:
        mend = "load or update the NVIDIA driver; in a container, start it with --gpus all"
        return [Finding("gpus", FAIL, f"nvidia-smi fails: {driver['error']}", mend, where)]
    found = [
        Finding("gpus", FAIL, f"GPU {i} ({one['name']}) cannot be used: {one['error']}", "reset or replace it", where)
        for i, one in enumerate(torch["devices"])
        if "error" in one
    ]
    return found or [_counts(torch, driver, ray, where)]


def _counts(torch: dict[str, Any], driver: Facts, ray: float | None, where: tuple[str, ...]) -> Finding:
    usable = len(torch["devices"]) if torch["available"] else 0
    expected = int(driver["gpus"] if ray is None else ray)
    who = "nvidia-smi" if ray is None else "Ray"
    if usable < expected:
        why = torch["warnings"][0] if torch["warnings"] else ""
        if torch["cuda"] is None:
            why, mend = f"torch {torch['torch']} is a build without GPUs", "install torch's build for your CUDA version"
        elif driver["gpus"] == 0:
            why = why or "nvidia-smi finds no driver"
            mend = f"install the NVIDIA driver, or start Ray there with --num-gpus={usable}"
        else:
            mend = f"update the driver ({driver['version']}) or install a torch for an older CUDA than {torch['cuda']}"
        told = f"{who} counts {expected} GPUs, torch can use {usable}" + (f": {why}" if why else "")
        return Finding("gpus", FAIL, told, mend, where)
    if usable > expected and ray is not None:
        told = f"Ray counts {expected} GPUs, torch can use {usable}: the others stay idle"
        return Finding("gpus", WARN, told, f"start Ray there with --num-gpus={usable}", where)
    if not usable:
        return Finding("gpus", OK, "no GPU: work runs on CPUs", "", where)
    names = ", ".join(sorted({one["name"] for one in torch["devices"]}))
    return Finding("gpus", OK, f"{usable} × {names}, driver {driver['version']}, CUDA {torch['cuda']}", "", where)
