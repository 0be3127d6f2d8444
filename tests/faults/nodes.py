"""A Ray cluster of several nodes on this machine, whose nodes can be killed, frozen and added."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import disturb
from disturb import Command, Process

from megu_dist.raysession import ENVIRONMENT

CPUS = 4
# A node that does not answer for about ten seconds is dead.
HEARTBEAT = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 4,
}
OF_RAY = ("IDLE", "DashboardAgent", "RuntimeEnvAgent", "ActorLocationTracker", "_AutoscalingCoordinatorActor",
          "_UsageCollectionActor", "_StatsActor")  # fmt: skip
GROUPS = """
import json, sys
import ray
from ray.util.placement_group import placement_group_table
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="error")
print(json.dumps([group["state"] for group in placement_group_table().values() if group["state"] != "REMOVED"]))
"""


class Nodes:
    """The head, which has no CPUs for work, and two nodes; all processes carry ``mark``."""

    def __init__(self, cluster: Any, mark: str) -> None:
        self.cluster, self.mark = cluster, mark
        self.workers: list[Any] = []
        self.frozen: list[Process] = []
        self.given_up: list[Any] = []  # nodes that were frozen

    @property
    def address(self) -> str:
        """Of the head."""
        return str(self.cluster.address)

    def add(self) -> None:
        """One more node."""
        self.workers.append(self.cluster.add_node(num_cpus=CPUS, object_store_memory=2**28))

    def processes(self) -> list[Process]:
        """Of all nodes for work."""
        return [one for node in self.workers for one in self._of(node)]

    def kill(self, victim: Process) -> None:
        """SIGKILL of the raylet of the node that ``victim`` is on, and of everything that it started."""
        node = self._where(victim)
        processes = self._of(node)
        self.workers.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)
        for one in processes:
            one.kill()

    def freeze(self, victim: Process) -> None:
        """SIGSTOP of the same."""
        node = self._where(victim)
        self.workers.remove(node)
        self.given_up.append(node)
        self.frozen = self._of(node)
        for one in self.frozen:
            one.kill(signal.SIGSTOP)

    def thaw(self) -> None:
        """The frozen node goes on, and finds out that it was given up."""
        for one in self.frozen:
            one.kill(signal.SIGCONT)

    def groups(self) -> str:
        """The states of placement groups that are not removed, as JSON."""
        done = subprocess.run([sys.executable, "-c", GROUPS, self.address], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip().splitlines()[-1]

    def work(self) -> list[Process]:
        """What is left of a run on the nodes: processes that do somebody's work, and no idle ones."""
        for node in self.given_up:  # its workers end when they see no raylet any more, not even one as a zombie
            self._raylet(node).poll()
        return [one for one in disturb.marked(self.mark) if one.title.startswith("ray::") and not _own(one.title)]

    def nothing_is_left(self, run: Command) -> None:
        """Waits for the end of a run's processes and placement groups; no temporary files are left."""
        disturb.gone(run.mark)
        disturb.wait_for(lambda: not self.work(), f"the end of {self.work()}", 60, every=0.5)
        disturb.wait_for(lambda: self.groups() == "[]", "the end of the placement groups", 60, every=1)
        assert not disturb.leftovers(run.root, run.folder)

    def _of(self, node: Any) -> list[Process]:
        raylet = self._raylet(node).pid
        return [Process(raylet, "raylet"), *disturb.descendants(raylet)]

    def _raylet(self, node: Any) -> subprocess.Popen[bytes]:
        found: subprocess.Popen[bytes] = node.all_processes["raylet"][0].process
        return found

    def _where(self, victim: Process) -> Any:
        return next(node for node in self.workers if victim.pid in [one.pid for one in self._of(node)])


def _own(title: str) -> bool:
    """Whether a process belongs to Ray itself, and to no run: Ray Data leaves some actors to the runs that follow."""
    return title.startswith(tuple(f"ray::{name}" for name in OF_RAY))


@contextmanager
def cluster(root: Path, count: int = 2) -> Iterator[Nodes]:
    """A head and ``count`` nodes with :data:`CPUS` logical CPUs each."""
    from ray.cluster_utils import Cluster

    scratch = root / "scratch"
    scratch.mkdir(exist_ok=True)
    mark = uuid.uuid4().hex
    given = ENVIRONMENT | {disturb.MARK: mark, "TMPDIR": str(scratch), "RAY_TMPDIR": "/tmp"}
    given["RAY_AUTH_MODE"] = "disabled"  # else nodes ask for a token as soon as any Ray has left one on this machine
    before = {name: os.environ.get(name) for name in given}
    os.environ |= given
    made = None
    try:
        made = Nodes(Cluster(), mark)
        made.cluster.add_node(
            num_cpus=0, object_store_memory=2**28, include_dashboard=True, _system_config=dict(HEARTBEAT)
        )
        for _ in range(count):
            made.add()
        yield made
    finally:
        if made is not None:
            made.thaw()
            made.cluster.shutdown()
        for one in disturb.marked(mark):
            one.kill()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
