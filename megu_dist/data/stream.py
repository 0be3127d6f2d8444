"""Streams rows through Ray Data in a fixed order, and regroups them into the steps that a plan asks for."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa

Arrays = dict[str, np.ndarray]
T = TypeVar("T")
LOCAL_CORES = "MEGU_LOCAL_CORES"  # cores that reading may take: of a local Ray's machine, or asked for with a job
LONG = 4  # blocks per core from which on a second process per core pays for its start
FEW_BYTES = 8 << 20  # of images that a process reads by itself in less time than another takes to start
TASK_BYTES = 32 << 20  # decoded bytes that one task yields: many tasks per core, few megabytes in flight


_here = False


@contextmanager
def in_this_process() -> Iterator[None]:
    """Within the block, what would be Ray Data jobs is done in this process, in the same order and by the same code.

    For processes that are Ray actors themselves and do many small pieces of work, as the cells of a benchmark are.
    """
    global _here
    before, _here = _here, True
    try:
        yield
    finally:
        _here = before


def here() -> bool:
    """Whether work is done in this process."""
    return _here


_tasks_without_cpus = 0


def without_cpus(tasks: int) -> None:
    """From now on, the tasks that this process has read ask for no CPU, and ``tasks`` of a job run at a time.

    For the workers of an elastic group: it takes whatever CPUs are left when nodes go away, and would wait for ever for
    tasks that need one.
    """
    global _tasks_without_cpus
    _tasks_without_cpus = tasks


def blocks(
    rows: np.ndarray,
    reader: Callable[[Arrays], Any],
    chunk: int,
    actor: Callable[..., Any] | None = None,
    arguments: dict[str, Any] | None = None,
    actors: int = 1,
    num_gpus: float = 0.0,
    batch_format: str = "numpy",
    prefetch: int = 1,
) -> Iterator[Any]:
    """What ``reader`` makes of ``rows``, and the class ``actor(**arguments)`` of that: block by block, in row order.

    A Ray Data job with tasks that read and ``actors`` actors, each with a share ``num_gpus`` of a GPU. With ``actors=0``,
    this process does all of it: of :func:`few` images, it is done before others would have started.
    """
    if _here or not actors:
        work = actor(**(arguments or {})) if actor else None
        for start in range(0, len(rows), chunk):
            block = reader({"row": rows[start : start + chunk].astype(np.int64)})
            yield _converted(block if work is None else work(block), batch_format)
        return
    data = dataset(rows, reader, chunk)
    if actor is not None:
        data = data.map_batches(
            actor,
            batch_size=None,
            batch_format="numpy",
            zero_copy_batch=True,
            compute=actor_pool(actors),
            num_cpus=1,
            num_gpus=num_gpus,
            fn_constructor_kwargs=arguments,
        )
    yield from data.iter_batches(batch_size=None, batch_format=batch_format, prefetch_batches=prefetch)


def _converted(block: Any, batch_format: str) -> Any:
    if batch_format == "numpy" and isinstance(block, pa.Table):
        return {name: block[name].to_numpy() for name in block.column_names}
    return block


def few(count: int, decoded: int, encoded: float = 0.0) -> bool:
    """Whether ``count`` images of so many bytes, decoded and encoded, are read before another process would have started."""
    return count * max(decoded, encoded) <= FEW_BYTES


def task_rows(row_bytes: int) -> int:
    """Rows per Ray Data task for rows of ``row_bytes`` decoded bytes."""
    return int(np.clip(TASK_BYTES // max(1, row_bytes), 16, 4096))


def dataset(rows: np.ndarray, reader: Callable[[Arrays], Any], chunk: int) -> Any:
    """A lazy Ray Dataset of what ``reader`` makes of ``rows``, in their order, ``chunk`` rows a task.

    On a local Ray a task per core runs at a time, since its logical CPUs exceed the cores and each further task would start
    a Python process; two in long jobs, which pays: a core is idle for a quarter of the time in which Ray Data hands out
    one task after the other. On a cluster, where two tasks share a CPU, too, Ray Data decides.
    """
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    blocks = [pa.table({"row": rows[start : start + chunk].astype(np.int64)}) for start in range(0, len(rows), chunk)]
    cores = int(os.environ.get(LOCAL_CORES, 0))
    tasks = _tasks_without_cpus or (cores * (2 if len(blocks) >= LONG * cores else 1)) or None
    return ray.data.from_blocks(blocks).map_batches(
        reader,
        batch_size=None,
        batch_format="numpy",
        zero_copy_batch=True,
        num_cpus=0 if _tasks_without_cpus else 0.5,
        compute=ray.data.TaskPoolStrategy(size=tasks),
    )


def actor_pool(size: int) -> Any:
    """The compute strategy of a stage with ``size`` model actors."""
    import ray

    return ray.data.ActorPoolStrategy(size=size)


def in_steps(batches: Iterable[Arrays], sizes: Iterable[int]) -> Iterator[Arrays]:
    """Regroups arrays of any lengths into groups of exactly ``sizes`` rows (0 gives empty arrays).

    Only a group's own rows are copied, and only where they come from several arrays.
    """
    source = iter(batches)
    rest: Arrays = {}
    for size in sizes:
        parts: list[Arrays] = []
        missing = size
        while missing or not parts:
            if not rest or (missing and not len(rest["row"])):
                rest = next(source)
            parts.append({name: values[:missing] for name, values in rest.items()})
            rest = {name: values[missing:] for name, values in rest.items()}
            missing -= len(parts[-1]["row"])
        yield parts[0] if len(parts) == 1 else {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}


class ReadAhead(Generic[T]):
    """Iterates in a background thread that starts at once, ``depth`` items ahead; errors pass through to the consumer."""

    def __init__(self, items: Iterable[T], depth: int = 3) -> None:
        self._ready: queue.Queue[tuple[bool, Any]] = queue.Queue(depth)
        self._stop = threading.Event()
        self._end = object()
        threading.Thread(target=self._work, args=(items,), daemon=True, name="megu-read-ahead").start()

    def _put(self, entry: tuple[bool, Any]) -> None:
        while not self._stop.is_set():
            try:
                return self._ready.put(entry, timeout=0.2)
            except queue.Full:
                continue

    def _work(self, items: Iterable[T]) -> None:
        try:
            for item in items:
                self._put((True, item))
                if self._stop.is_set():
                    return
            self._put((True, self._end))
        except BaseException as error:  # handed to the consumer, which raises it
            self._put((False, error))

    def __iter__(self) -> Iterator[T]:
        try:
            while True:
                fine, item = self._ready.get()
                if not fine:
                    raise item
                if item is self._end:
                    return
                yield item
        finally:
            self._stop.set()
