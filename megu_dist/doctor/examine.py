"""Asks every node, and judges: this machine in this process, a cluster by an actor on each of its nodes."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megu_dist.doctor import auth, clock, disks, gpus, operators, ports, storage, versions
from megu_dist.doctor.base import FAIL, WARN, Asked, Finding, Node, Seen
from megu_dist.doctor.cluster import Unreachable, connected, describe
from megu_dist.doctor.probe import LOOKS, Probe

Judge = Callable[[Seen, Asked], list[Finding]]
JUDGES: dict[str, Judge] = {
    "versions": versions.judge,
    "gpus": gpus.judge,
    "storage": storage.judge,
    "operators": operators.judge,
    "disks": disks.judge,
    "clock": clock.judge,
    "ports": ports.judge,
    "auth": auth.judge,
}
SECONDS = 180.0  # for all nodes to answer one question
HERE = "this machine"


@dataclass(frozen=True)
class Outcome:
    """Names of the nodes that were looked at, and what was found."""

    nodes: list[str]
    findings: list[Finding]


def examine(folder: str, object_store: int, address: str | None) -> Outcome:
    """Looks at this machine, or at all nodes of the cluster at ``address``. ``object_store``: bytes, of a Ray of one's own.

    Where the cluster cannot be reached, that is a finding, and this machine is looked at, which may tell why.
    """
    if address is None:
        return _here(folder, object_store)
    try:
        with connected(address) as cluster:
            nodes = describe(cluster, folder, versions.asked_packages())
            asked = Asked(nodes={name: node for name, (_, node) in nodes.items()}, cluster=True)
            with _actors({name: key for name, (key, _) in nodes.items()}) as (probes, lost):
                findings = _judged(_ask(probes, asked, lost), asked)
            return Outcome(list(nodes), [*lost, *findings])
    except Unreachable as error:
        here = _here(folder, object_store)
        return Outcome(here.nodes, [error.finding, *here.findings])


def _here(folder: str, object_store: int) -> Outcome:
    temp_dir = str(Path(os.environ.get("RAY_TMPDIR") or "/tmp") / "ray")
    node = Node(storage=folder, object_store=object_store, ports=ports.USUAL, temp_dir=temp_dir,
                packages=versions.asked_packages())  # fmt: skip
    asked = Asked(nodes={HERE: node})
    return Outcome([HERE], _judged(_ask({HERE: _Direct()}, asked, []), asked))


class _Direct:
    """A probe in this process, called as an actor is."""

    def __init__(self) -> None:
        self.probe = Probe()

    def call(self, name: str, *words: Any) -> Callable[[], Any]:
        return lambda: getattr(self.probe, name)(*words)

    def now(self) -> float:
        return self.probe.now()


class _Actor:
    """A probe on another node."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle

    def call(self, name: str, *words: Any) -> Callable[[], Any]:
        import ray

        ref = getattr(self.handle, name).remote(*words)
        return lambda: ray.get(ref, timeout=SECONDS)

    def now(self) -> float:
        return float(self.call("now")())


@contextmanager
def _actors(keys: dict[str, str]) -> Iterator[tuple[dict[str, Any], list[Finding]]]:
    """A probe on each node by name (``keys``: its id in Ray), without those that do not start: they are findings."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    import megu_dist.doctor

    ray.cloudpickle.register_pickle_by_value(megu_dist.doctor)  # a node may have another version of it, or none
    lost: list[Finding] = []
    try:
        actor = ray.remote(num_cpus=0, max_concurrency=1)(Probe)
        started = {
            name: _Actor(actor.options(scheduling_strategy=NodeAffinitySchedulingStrategy(key, soft=False)).remote())
            for name, key in keys.items()
        }
        answers = {name: one.call("now") for name, one in started.items()}
        there = [name for name, answer in answers.items() if _answer(answer, name, lost) is not None]
        yield {name: started[name] for name in there}, lost
        for one in started.values():
            ray.kill(one.handle)
    finally:
        ray.cloudpickle.unregister_pickle_by_value(megu_dist.doctor)


def _answer(answer: Callable[[], Any], name: str, lost: list[Finding]) -> Any:
    """The answer, or None and a finding."""
    from ray.exceptions import GetTimeoutError

    try:
        return answer()
    except GetTimeoutError:
        told = f"no answer within {SECONDS:.0f} s"
    except Exception as error:
        told = f"cannot be asked: {(str(error).strip().splitlines() or [type(error).__name__])[-1]}"
    mend = "look at raylet.err and the newest python-core-worker log there, in <Ray's temporary folder>/session_latest/logs"
    lost.append(Finding("cluster", FAIL, told, mend, (name,)))
    return None


def _ask(probes: dict[str, Any], asked: Asked, lost: list[Finding]) -> dict[str, Seen]:
    """Facts by group and node. Questions go to all nodes at once; the steps of the storage check wait for all."""
    looks = {name: one.call("look", asked.nodes[name]) for name, one in probes.items()}
    facts = {name: found for name, look in looks.items() if (found := _answer(look, name, lost)) is not None}
    seen: dict[str, Seen] = {group: {name: facts[name][group] for name in facts} for group in LOOKS}
    probes = {name: probes[name] for name in facts}
    seen["storage"] = _share(probes, asked)
    if asked.cluster:
        seen["clock"] = {name: clock.measure(one.now) for name, one in probes.items()}
    return seen


def _share(probes: dict[str, Any], asked: Asked) -> Seen:
    token = uuid.uuid4().hex
    writing = {name: one.call("write", asked.nodes[name].storage, token, name) for name, one in probes.items()}
    try:
        seen: Seen = {name: answer() for name, answer in writing.items()}
        names = [name for name, facts in seen.items() if "error" not in facts]
        reading = {name: probes[name].call("read", names) for name in names}
        for name, answer in reading.items():
            seen[name] |= answer()
    finally:
        cleaning = [one.call("clean") for one in probes.values()]
        for answer in cleaning:
            answer()
    return seen


def _judged(seen: dict[str, Seen], asked: Asked) -> list[Finding]:
    """Findings in the order of the groups; a look that failed is one."""
    findings = []
    for group, judge in JUDGES.items():
        facts = seen.get(group, {})
        for name, one in facts.items():
            if "failed" in one:
                findings.append(Finding(group, WARN, f"could not be looked at: {one['failed']}", "", (name,)))
        whole = {name: one for name, one in facts.items() if "failed" not in one}
        if whole:
            findings += judge(whole, asked)
    return findings
