"""Looks at the machine that it runs on: in this process, or as an actor on each node of a cluster."""

from __future__ import annotations

from collections.abc import Callable

from megu_dist.doctor import auth, disks, gpus, operators, ports, versions
from megu_dist.doctor.base import Facts, Node
from megu_dist.doctor.storage import Share

LOOKS: dict[str, Callable[[Node], Facts]] = {
    "versions": versions.look,
    "gpus": gpus.look,
    "operators": operators.look,
    "disks": disks.look,
    "ports": ports.look,
    "auth": auth.look,
}


class Probe:
    """Keeps its file of the storage check between the calls."""

    def look(self, node: Node) -> dict[str, Facts]:
        """Facts by group, all at once; ``error`` instead of them where a look fails."""
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor() as pool:
            return dict(zip(LOOKS, pool.map(lambda look: _guarded(look, node), LOOKS.values()), strict=True))

    def write(self, storage: str, token: str, name: str) -> Facts:
        self.share = Share(storage, token, name)
        return self.share.write()

    def read(self, names: list[str]) -> Facts:
        return self.share.read(names)

    def clean(self) -> None:
        self.share.clean()

    def now(self) -> float:
        import time

        return time.time()


def _guarded(look: Callable[[Node], Facts], node: Node) -> Facts:
    try:
        return look(node)
    except Exception as error:  # a broken machine is what this is for: one look less is a finding
        return {"failed": f"{type(error).__name__}: {error}"}
