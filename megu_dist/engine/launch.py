"""Starts a Ray Train job from the driver, follows its log, and resumes it from its newest whole checkpoint."""

from __future__ import annotations

import json
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from megu_dist.config.schema import TrainSettings
from megu_dist.engine import checkpoints
from megu_dist.engine.worker import TrainJob
from megu_dist.errors import UserError

READERS = 1.0  # CPUs that a group leaves to the tasks that read
ABORT_S = 5.0  # the driver waits so long for a training that it has aborted
ELASTIC_START_S = 30.0  # an elastic group that has not been placed by then is counted anew: a node may be gone


def fit(job: TrainJob, checkpoint_root: Path, progress: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Runs ``job`` on ``train.num_workers`` workers and returns what rank 0 returned.

    Checkpoints go to ``checkpoint_root``, one folder per attempt; the newest whole one is resumed from, with the log
    lines of the steps before it. Worker failures restart the group up to ``train.max_failures`` times.
    """
    from megu_dist.engine import inline

    if inline.suits(job):
        return inline.fit_here(job, checkpoint_root)
    import ray.train

    from megu_dist.engine import worker

    train, give_up = job.settings.train, job.settings.run.placement_timeout_s
    workers = check_workers(train)
    checkpoint_root.mkdir(parents=True, exist_ok=True)
    resume = checkpoints.to_resume(checkpoint_root, job.resume, job.settings.run.resume)
    history = Path(job.history)
    if resume is None:
        history.unlink(missing_ok=True)
    # Ray Train would take a waiting group out of the queue each minute; megu_dist.placement gives up, and says why.
    start, tries = 2 * give_up, 3
    if train.elastic:
        start, tries = ELASTIC_START_S, 3 + int(2 * give_up / ELASTIC_START_S)
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(start)
    trainer = _trainer()(
        worker.run,
        train_loop_config={"job": replace(job, resume=None if resume is None else str(resume))},
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers, use_gpu=train.use_gpu, resources_per_worker=train.worker_resources
        ),
        run_config=ray.train.RunConfig(
            name=f"attempt-{uuid.uuid4().hex[:12]}",  # a name that was used before would make Ray Train resume by itself
            storage_path=str(checkpoint_root),
            failure_config=ray.train.FailureConfig(max_failures=train.max_failures, controller_failure_limit=tries),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    )
    with _Follow(history, progress), _aborted_with(trainer):
        result = trainer.fit()
    if result.return_value is None:
        raise RuntimeError("the training job ended without a result")
    if history.is_file():
        shutil.copyfile(history, Path(job.out) / "history.jsonl")
    else:  # a method that edits weights without a training step
        (Path(job.out) / "history.jsonl").touch()
    return result.return_value


def check_workers(train: TrainSettings) -> int | tuple[int, int]:
    """How many workers Ray Train is to start: a number, or the least and the most of an elastic group.

    An elastic group shrinks and grows with the cluster, each time from the newest checkpoint. Raises :class:`UserError`
    for a group that the cluster could never hold: Ray would wait for it for ever.
    """
    import ray

    from megu_dist.placement import room_for

    least, key = train.num_workers, "train.num_workers"
    if train.elastic:
        least, key = train.min_workers or 1, "train.min_workers"
    asked, have = train.worker_resources, ray.cluster_resources()
    for name, each in asked.items():
        if least * each > have.get(name, 0):
            raise UserError(
                f"{key}={least} needs {least * each:g} {name}s, but the cluster has {have.get(name, 0):g}; ask for fewer "
                "workers" + (" or set train.use_gpu=false" if name == "GPU" else "")
            )
    if room_for(asked) < least:
        words = " and ".join(f"{amount:g} {name}s" for name, amount in asked.items())
        raise UserError(
            f"{key}={least}: of workers with {words} each, the cluster's nodes hold {room_for(asked)}; ask for fewer workers, "
            "or for less of each (train.num_cpus)"
        )
    if train.elastic and not train.use_gpu:  # such a group's reading tasks ask for no CPU: see stream.without_cpus
        return least, train.num_workers
    if (left := have["CPU"] - least * train.num_cpus) < READERS:
        raise UserError(
            f"{key}={least} with train.num_cpus={train.num_cpus:g} leaves {left:g} of the cluster's {have['CPU']:g} CPUs to "
            f"the tasks that read images, which need {READERS:g}; set one of the two lower"
        )
    return (least, train.num_workers) if train.elastic else least


def _trainer() -> Any:
    """Ray Train's trainer, which keeps its controller's handle and leaves Ctrl-C to the command.

    Ray's own handler of Ctrl-C ends the process with status 1 and no word.
    """
    from ray.train.torch import TorchTrainer

    class Trainer(TorchTrainer):
        controller: Any = None

        def _register_sigint_handler(self, controller: Any) -> None:
            self.controller = controller

    return Trainer


@contextmanager
def _aborted_with(trainer: Any) -> Iterator[None]:
    """Aborts the training when the driver stops waiting for it: Ctrl-C, a scheduler's stop, no room in time.

    A controller that only dies with its driver leaves a detached actor, which a cluster without a dashboard never ends.
    """
    import ray

    try:
        yield
    except KeyboardInterrupt:
        if trainer.controller is not None:
            with suppress(ray.exceptions.RayError):  # the controller's own end is one, and so is its silence
                ray.get(trainer.controller.abort.remote(), timeout=ABORT_S)
        raise


class _Follow:
    """Passes new lines of a JSON-lines file on to ``progress`` while the ``with`` block runs."""

    def __init__(self, path: Path, progress: Callable[[dict[str, Any]], None]) -> None:
        self.path, self.progress = path, progress
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True, name="megu-follow-log")

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()

    def _run(self) -> None:
        seen = 0
        while True:
            last = self.done.wait(0.3)
            lines = self.path.read_text().split("\n")[:-1] if self.path.is_file() else []  # the last may be half a line
            for line in lines[seen:]:
                self.progress(json.loads(line))
            seen = len(lines)  # fewer than before when a restarted worker group dropped the lines it repeats
            if last:
                return
