"""Versions: within the ranges of the package's own metadata, and equal on all nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megu_dist.doctor.base import FAIL, OK, WARN, Asked, Facts, Finding, Node, Seen

if TYPE_CHECKING:
    from packaging.requirements import Requirement

PACKAGE = "megu-dist"
EQUAL = ("python", "ray", "torch", "deepspeed", "transformers", "pyarrow", PACKAGE)
INSTALL = "install the same requirements.lock on every node, or start all nodes from one image (cluster/Dockerfile)"


def look(node: Node) -> Facts:
    """Versions by distribution name (None: not installed), and a hash of the package's own code."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in node.packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return {"versions": found, "code": _code()}


def _code() -> str | None:
    """Hash of the files of the installed package; none where there is no such package."""
    import hashlib
    from importlib.util import find_spec
    from pathlib import Path

    spec = find_spec("megu_dist")
    if spec is None or not spec.submodule_search_locations:
        return None
    root = Path(next(iter(spec.submodule_search_locations)))
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


def asked_packages() -> tuple[str, ...]:
    """The distributions that the nodes are asked for."""
    return tuple(dict.fromkeys([*(name for name in EQUAL if name != "python"), *requirements()]))


def requirements() -> dict[str, Requirement]:
    """What this installation requires, by name, without what extras require; empty where it is not installed."""
    from importlib.metadata import PackageNotFoundError, requires

    from packaging.requirements import Requirement

    try:
        parsed = [Requirement(line) for line in requires(PACKAGE) or []]
    except PackageNotFoundError:
        return {}
    return {one.name: one for one in parsed if one.marker is None or one.marker.evaluate({"extra": ""})}


def judge(seen: Seen, asked: Asked) -> list[Finding]:
    """Ranges, then equality."""
    found = [*_ranges(seen), *_differences(seen), *_codes(seen)]
    if not found:
        shown = ", ".join(f"{name} {value}" for name, value in _of(next(iter(seen.values()))).items() if name in EQUAL)
        return [Finding("versions", OK, shown)]
    return found


def _of(facts: Facts) -> dict[str, str | None]:
    versions: dict[str, str | None] = facts["versions"]
    return versions


def _ranges(seen: Seen) -> list[Finding]:
    from importlib.metadata import PackageNotFoundError, metadata

    from packaging.specifiers import SpecifierSet

    try:
        ranges = {"python": SpecifierSet(metadata(PACKAGE)["Requires-Python"] or "")}
    except PackageNotFoundError:
        return [
            Finding("versions", WARN, f"{PACKAGE} is not installed here: its ranges are not known", "pip install .")
        ]
    ranges |= {name: one.specifier for name, one in requirements().items()}
    found = []
    for node, facts in seen.items():
        for name, version in _of(facts).items():
            if version is None:
                found.append(_missing(name, node))
            elif name in ranges and not ranges[name].contains(version, prereleases=True):
                mend = f"pip install '{name}{ranges[name]}'" if name != "python" else f"install Python {ranges[name]}"
                text = f"{name} {version} is outside of {ranges[name]}, which this version of megu is made for"
                found.append(Finding("versions", FAIL, text, mend, (node,)))
    return found


def _missing(name: str, node: str) -> Finding:
    if name == PACKAGE:
        mend = "install it there, or use `megu submit`, which sends it along"
        return Finding("versions", WARN, f"{PACKAGE} is not installed", mend, (node,))
    return Finding("versions", FAIL, f"{name} is not installed", INSTALL, (node,))


def _differences(seen: Seen) -> list[Finding]:
    """Builds for CPUs and for GPUs (``+cpu``, ``+cu128``) count as the same version: a head often has no GPU."""
    found = []
    for name in EQUAL:
        by_version: dict[str, list[str]] = {}
        for node, facts in seen.items():
            version = _of(facts).get(name)
            if version is not None:
                by_version.setdefault(version.split("+")[0], []).append(node)
        if len(by_version) < 2:
            continue
        common = max(by_version.values(), key=len)
        odd = tuple(node for nodes in by_version.values() if nodes is not common for node in nodes)
        told = "; ".join(f"{version} on {len(nodes)} of {len(seen)} nodes" for version, nodes in by_version.items())
        patch = name == "python" and len({version.rsplit(".", 1)[0] for version in by_version}) == 1
        found.append(Finding("versions", WARN if patch else FAIL, f"{name} differs: {told}", INSTALL, odd))
    return found


def _codes(seen: Seen) -> list[Finding]:
    by_code: dict[str, list[str]] = {}
    for node, facts in seen.items():
        if facts["code"] is not None:
            by_code.setdefault(facts["code"], []).append(node)
    if len(by_code) < 2:
        return []
    common = max(by_code.values(), key=len)
    odd = tuple(node for nodes in by_code.values() if nodes is not common for node in nodes)
    mend = "update the checkout there, or use `megu submit`, which sends this one along"
    return [Finding("versions", WARN, f"the code of {PACKAGE} differs from that of the other nodes", mend, odd)]
