"""Connects to a Ray cluster, or starts a Ray of this process's own that is gone when the block ends."""

from __future__ import annotations

import importlib
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from megu_dist import scratch
from megu_dist.config.schema import MeguSettings
from megu_dist.data.stream import LOCAL_CORES
from megu_dist.errors import UserError

# Ray Train polls its workers at this interval, and takes at most one report each time.
ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Idle workers started ahead, one per logical CPU, would take the cores from the work itself.
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_worker_prestart": "0",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    # One malloc arena for every few threads: with many, a training worker holds on to half as much again.
    "MALLOC_ARENA_MAX": "2",
}
FIRST = ("torch", "transformers.modeling_utils")
LATER = ("ray.serve", "ray.train.torch", "sklearn.linear_model", "matplotlib.backends.backend_agg")


@contextmanager
def ray_session(settings: MeguSettings) -> Iterator[None]:
    """A connected Ray for the length of the block; an existing connection is used and left open.

    Locally, logical CPUs exceed the cores: Data, Train and Serve each reserve some, and with two they would wait for
    each other for ever. Threads are capped by the workers themselves.
    """
    worker_env = {"env_vars": worker_environment()}  # first: Ray reads some of it when it is imported
    import ray

    if ray.is_initialized():
        yield
        return
    # Ray asks of every object that it sends whether it is a tensor, as soon as it finds torch among the modules: a torch
    # that is half imported then is an error. So it is imported while Ray starts, and waited for; with it what models need,
    # which two threads must not import at a time, either.
    imported = threading.Thread(target=_import, args=FIRST, daemon=True)
    imported.start()
    run, train = settings.run, settings.train
    on_sigterm = signal.getsignal(signal.SIGTERM)
    address = run.address or os.environ.get("RAY_ADDRESS")
    if address:
        try:
            ray.init(address=address, log_to_driver=True, runtime_env=worker_env, logging_level="warning")
        except (ConnectionError, ValueError) as error:
            raise UserError(
                f"run.address={address}: cannot connect to Ray ({str(error).splitlines()[0]}); a cluster that asks for a "
                f"token wants RAY_AUTH_MODE=token here, too; see `megu doctor --address {address}`"
            ) from None
    else:
        needed = int(train.num_workers * train.num_cpus + settings.oracle.num_replicas * settings.oracle.num_cpus) + 4
        os.environ[LOCAL_CORES] = worker_env["env_vars"][LOCAL_CORES] = str(len(os.sched_getaffinity(0)))
        ray.init(
            address="local",  # also where somebody's cluster runs on this machine
            num_cpus=max(run.logical_cpus, needed),
            object_store_memory=int(run.object_store_gb * 2**30),
            include_dashboard=False,
            log_to_driver=True,
            runtime_env=worker_env,
            logging_level="warning",
        )
    if threading.current_thread() is threading.main_thread():
        # Ray has put its own handlers there, which end with status 15, or abort a tidying-up of more than three seconds.
        signal.signal(signal.SIGTERM, on_sigterm or signal.SIG_DFL)
    imported.join()
    # The driver needs these only to launch an oracle and training, to compute metrics and to draw; importing them takes
    # seconds, which the first stages leave idle.
    threading.Thread(target=_import, args=LATER, daemon=True).start()
    try:
        yield
    finally:
        ray.shutdown()
        os.environ.pop(LOCAL_CORES, None)
        scratch.sweep()  # of workers that were killed


def worker_environment() -> dict[str, str]:
    """Sets :data:`ENVIRONMENT` here, where the user has not, and returns what the workers get of it."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    return {name: os.environ[name] for name in ENVIRONMENT if not name.startswith("RAY_")}


def _import(*names: str) -> None:
    for name in names:
        importlib.import_module(name)


def auto_actors(wanted: int, num_gpus: float, few: bool = False) -> int:
    """Model actors of a stage: as asked, else one per GPU, else one per eight CPUs of the cluster.

    0 for ``few`` images on this machine's CPUs: an actor's process takes seconds to start, and this one has started.
    """
    import ray

    if wanted:
        return wanted
    if few and not num_gpus and LOCAL_CORES in os.environ:
        return 0
    have = ray.cluster_resources()
    if num_gpus > 0:
        return max(1, int(have.get("GPU", 0) / num_gpus))
    return max(1, int(have.get("CPU", 1)) // 8)
