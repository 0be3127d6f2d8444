"""Says what a stage waits for while the cluster has no room for its workers, and gives up after a while.

Ray queues a worker group, a model actor, an oracle's replica or a reading task for which nothing is free for as long as
it takes, in silence: other jobs may hold everything for hours, or no node may ever be large enough.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from megu_dist.config.schema import TrainSettings
from megu_dist.errors import UserError

LOOK_EVERY_S = 4.0
QUIET_S = 20.0  # a stage that got nowhere for so long, with something in the queue all the while, is waiting
AGAIN_S = 300.0
ASKED = {  # what the user may ask less of
    "oracle": "oracle.num_replicas, oracle.num_cpus",
    "perturb": "perturb.num_actors",
    "train": "train.num_workers, train.num_cpus",
    "finetune": "train.num_workers, train.num_cpus",
}
Request = tuple[tuple[tuple[str, float], ...], ...]  # bundles that go together, each of resources


@contextmanager
def watched(
    stage: str, done: Callable[[], int], say: Callable[[str], None], give_up_s: float, least: Request = ()
) -> Iterator[None]:
    """Within the block, says what Ray cannot place while ``done()`` does not grow; ends that after ``give_up_s``.

    ``least`` are the fewest workers of an elastic group: for those, Ray queues nothing where it sees no room.

    Raises :class:`UserError` then. Where this is not the main thread, which alone can be interrupted, it only says so.
    """
    import ray

    main = threading.current_thread() is threading.main_thread()
    if not ray.is_initialized():
        yield
        return
    watch = _Watch(stage, done, say, give_up_s, main, least)
    before = signal.signal(signal.SIGUSR2, _raise) if main else None
    watch.thread.start()
    try:
        yield
    except KeyboardInterrupt:  # Ray raises one of its own when a signal's handler raises
        if not watch.gave_up:
            raise
        raise UserError(
            f"{watch.told}. Given up after run.placement_timeout_s={give_up_s:g}: run the same command again when there "
            f"is room, or ask for less{_keys(stage)}"
        ) from None
    finally:
        watch.ended.set()
        watch.thread.join()  # so that its signal cannot arrive after the handler is gone
        if main:
            signal.signal(signal.SIGUSR2, before or signal.SIG_DFL)


def _raise(*_: object) -> None:
    """Ends what the main thread waits for, the way Ctrl-C does."""
    raise KeyboardInterrupt


class _Watch:
    def __init__(
        self,
        stage: str,
        done: Callable[[], int],
        say: Callable[[str], None],
        give_up_s: float,
        main: bool,
        least: Request,
    ) -> None:
        self.stage, self.done, self.say, self.give_up_s, self.main = stage, done, say, give_up_s, main
        self.least = least
        self.told, self.gave_up = "", False
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True, name="megu-placement")

    def _run(self) -> None:
        seen, since, said = self.done(), time.monotonic(), -AGAIN_S
        while not self.ended.wait(LOOK_EVERY_S):
            now = time.monotonic()
            try:
                queued = self._queued() if self.done() == seen else Counter()
            except Exception:  # the connection is going down, or a head that restarts: nothing to say
                continue
            if not queued:
                seen, since = self.done(), now
            elif now - since >= min(QUIET_S, self.give_up_s):
                self.told = f"{self.stage} waits for room on the cluster: {describe(queued, *_resources())}"
                if now - since >= self.give_up_s and self.main and not self.ended.is_set():
                    self.gave_up = True
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR2)
                    return
                if now - said >= AGAIN_S:
                    self.say(f"{self.told} (given up after run.placement_timeout_s={self.give_up_s:g})")
                    said = now

    def _queued(self) -> Counter[Request]:
        found = pending()
        if not found and self.least and room_for(dict(self.least[0])) < len(self.least):
            found[self.least] += 1
        return found


def elastic_least(train: TrainSettings) -> Request:
    """The fewest workers of an elastic group; nothing for one of a fixed size."""
    return (_bundle(train.worker_resources),) * (train.min_workers or 1) if train.elastic else ()


def room_for(asked: dict[str, float]) -> int:
    """How many workers with such resources the nodes would hold if nothing else ran."""
    import ray

    return sum(
        int(min(node["Resources"].get(name, 0) // amount for name, amount in asked.items() if amount))
        for node in ray.nodes()
        if node["Alive"]
    )


def pending() -> Counter[Request]:
    """What is asked of the connected cluster and not placed: tasks, actors, and placement groups as a whole."""
    import ray
    from ray.autoscaler.v2.sdk import get_cluster_status

    demands = get_cluster_status(ray.get_runtime_context().gcs_address).resource_demands
    found: Counter[Request] = Counter()
    for one in demands.ray_task_actor_demand:
        for asked in one.bundles_by_count:
            if not any("_group_" in name for name in asked.bundle):  # waits inside a group that has its place
                found[(_bundle(asked.bundle),)] += asked.count
    for group in demands.placement_group_demand:
        found[tuple(_bundle(asked.bundle) for asked in group.bundles_by_count for _ in range(asked.count))] += 1
    return found


def _bundle(asked: dict[str, float]) -> tuple[tuple[str, float], ...]:
    return tuple(
        sorted((name, value) for name, value in asked.items() if value and not name.startswith("bundle_group"))
    )


def _resources() -> tuple[dict[str, float], dict[str, float]]:
    import ray

    return ray.cluster_resources(), ray.available_resources()


def describe(queued: Counter[Request], total: dict[str, float], free: dict[str, float]) -> str:
    """What is missing, in words: what is asked, and of each resource in it how much is free and how much there is."""
    asked = []
    for group, count in sorted(queued.items(), key=lambda item: -len(item[0])):
        parts = [f"{n} × {_words(bundle)}" for bundle, n in Counter(group).items()]
        words = " and ".join(parts) + (" together" if len(group) > 1 else "")
        asked.append(words if count == 1 else f"{count} times {words}" if len(group) > 1 else f"{count}{words[1:]}")
    names = sorted({name for group in queued for bundle in group for name, _ in bundle})
    have = [
        f"{_amount(name, free.get(name, 0))} of {_amount(name, total.get(name, 0))} {name}{_unit(name)} free"
        if total.get(name)
        else f"no {name} at all"
        for name in names
    ]
    lacking = [
        name
        for name in names
        if any(sum(v for bundle in group for n, v in bundle if n == name) > total.get(name, 0) for group in queued)
    ]
    why = (
        f"more {', '.join(lacking)} than there is"
        if lacking
        else "other work holds the rest, or no node is large enough"
    )
    return f"Ray cannot place {'; '.join(asked)}; the cluster has {', '.join(have)} ({why})"


def _words(bundle: tuple[tuple[str, float], ...]) -> str:
    return "(" + ", ".join(f"{_amount(name, value)} {name}{_unit(name)}" for name, value in bundle) + ")"


def _amount(name: str, value: float) -> str:
    return f"{value / 2**30:.1f}" if _unit(name) else f"{value:g}"


def _unit(name: str) -> str:
    return " GiB" if name in ("memory", "object_store_memory") else ""


def _keys(stage: str) -> str:
    keys: Any = ASKED.get(stage)
    return f" ({keys})" if keys else ""
