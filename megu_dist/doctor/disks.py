"""Free space: at the run folder, at Ray's temporary folder, at this user's; and shared memory for the object store."""

from __future__ import annotations

import math

from megu_dist.doctor.base import FAIL, OK, WARN, Asked, Facts, Finding, Node, Seen, existing, listed, size

SHM = "/dev/shm"
LITTLE, NONE = 5 << 30, 200 << 20  # bytes: less than a run of some size takes; less than any takes
LITTLE_SHM = 64 << 20  # what data loaders and NCCL need of it
RAY_STOPS = 0.95  # of a disk: Ray writes no more objects to it (RAY_local_fs_capacity_threshold)


def look(node: Node) -> Facts:
    """Total and free bytes, and free files, of each place."""
    import tempfile

    places = {"run folder": node.storage, "Ray's temporary folder": node.temp_dir}
    places["temporary folder"] = tempfile.gettempdir()
    return {"places": {name: _space(path) for name, path in places.items()}, "shm": _space(SHM)}


def _space(path: str) -> Facts:
    import os

    where = existing(path)
    found = os.statvfs(where)
    total, free = found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
    files = found.f_favail if found.f_files else None  # some file systems do not count
    return {"path": str(path), "device": os.stat(where).st_dev, "total": total, "free": free, "files": files}


def judge(seen: Seen, asked: Asked) -> list[Finding]:
    """Places on one disk are one finding."""
    found = []
    for name, facts in seen.items():
        by_device: dict[int, list[str]] = {}
        for what, place in facts["places"].items():
            by_device.setdefault(place["device"], []).append(what)
        for names in by_device.values():
            found.append(_disk(names, facts["places"][names[0]], name, asked.cluster))
        found.append(_shm(facts["shm"], asked.nodes[name].object_store, name, asked.cluster))
    return found


def _disk(names: list[str], place: Facts, node: str, cluster: bool) -> Finding:
    free = f"{size(place['free'])} free of {size(place['total'])}"
    told = f"{free} for {listed(names)} ({place['path']})"
    instead = {"run folder": "run.dir=DIR", "temporary folder": "TMPDIR=DIR"}
    instead["Ray's temporary folder"] = "ray start --temp-dir DIR" if cluster else "RAY_TMPDIR=DIR"
    mend = f"free some space, or use another disk ({', '.join(instead[name] for name in names)})"
    full = 1 - place["free"] / max(place["total"], 1) > RAY_STOPS
    if place["files"] == 0:
        return Finding("disks", FAIL, f"no more files can be made: {told}", mend, (node,))
    if place["free"] < NONE:
        return Finding("disks", FAIL, told, mend, (node,))
    if full and "Ray's temporary folder" in names:
        told += f": Ray writes no objects to a disk that is {RAY_STOPS:.0%} full"
        return Finding("disks", FAIL, told, mend, (node,))
    return Finding("disks", *((WARN, told, mend) if place["free"] < LITTLE else (OK, told, "")), (node,))


def _shm(shm: Facts, store: int, name: str, cluster: bool) -> Finding:
    """A running store counts as free what it has filled, so only the size counts then."""
    told = f"{SHM} has {size(shm['free'])} free of {size(shm['total'])}; the object store may take {size(store)}"
    smaller = "ray start --object-store-memory BYTES" if cluster else "run.object_store_gb=N"
    mend = f"free it; in a container: --shm-size={math.ceil(1.2 * store / 2**30)}g; or a smaller store: {smaller}"
    if shm["free"] < LITTLE_SHM:
        return Finding("shared memory", FAIL, told, mend, (name,))
    if (shm["total"] if cluster else shm["free"]) < store:
        told += ": Ray keeps its objects on a disk then, which is slow"
        return Finding("shared memory", WARN, told, mend, (name,))
    return Finding("shared memory", OK, told, "", (name,))
