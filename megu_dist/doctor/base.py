"""What the checks share: what is asked of a node, what was found, and the folder that a path would be made in."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OK, WARN, FAIL = "ok", "warn", "fail"
LEVELS = (OK, WARN, FAIL)  # better to worse

Facts = dict[str, Any]
Seen = dict[str, Facts]  # by node name


@dataclass(frozen=True, kw_only=True)
class Node:
    """What a node is asked to look at. ``ports`` has names of services; sizes are in bytes."""

    storage: str
    temp_dir: str = "/tmp/ray"  # Ray's
    object_store: int = 0
    gpus: float | None = None  # that Ray counts; none: no Ray is running
    head: bool = True
    ports: dict[str, int] = field(default_factory=dict)
    packages: tuple[str, ...] = ()  # whose versions are asked


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The nodes by name, and whether they are a Ray cluster or this machine alone."""

    nodes: dict[str, Node]
    cluster: bool = False


@dataclass(frozen=True)
class Finding:
    """One line of the outcome. ``mend`` says what to do; it is empty when nothing is to be done."""

    check: str
    level: str
    text: str
    mend: str = ""
    nodes: tuple[str, ...] = ()  # none: all of them


def existing(path: str | Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    where = Path(path)
    while not where.exists() and where != where.parent:
        where = where.parent
    return where


def listed(names: list[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def size(amount: float) -> str:
    """Bytes in words."""
    for unit, width in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if amount >= 1 << width:
            return f"{amount / (1 << width):.1f} {unit}"
    return f"{amount:.0f} bytes"


def duration(seconds: float) -> str:
    """Seconds in words."""
    for unit, width in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * width:
            return f"{seconds / width:.0f} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
