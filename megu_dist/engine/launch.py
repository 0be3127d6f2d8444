"""Starts a Ray Train job from the driver, follows its log, and resumes it from its newest whole checkpoint."""

from __future__ import annotations

import json
import os
import shutil
import threading
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from megu_dist.config.schema import TrainSettings
from megu_dist.engine import checkpoints
from megu_dist.engine.worker import TrainJob
from megu_dist.errors import UserError

READERS = 1.0  # CPUs that an elastic group leaves to the tasks that read


def fit(job: TrainJob, checkpoint_root: Path, progress: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Runs ``job`` on ``train.num_workers`` workers and returns what rank 0 returned.

    Checkpoints go to ``checkpoint_root``, one folder per attempt; the newest whole one is resumed from, with the log
    lines of the steps before it. Worker failures restart the group up to ``train.max_failures`` times.
    """
    from megu_dist.engine import inline

    if inline.suits(job):
        return inline.fit_here(job, checkpoint_root)
    import ray.train
    from ray.train.torch import TorchTrainer

    from megu_dist.engine import worker

    train = job.settings.train
    workers = check_workers(train)
    checkpoint_root.mkdir(parents=True, exist_ok=True)
    resume = checkpoints.to_resume(checkpoint_root, job.resume, job.settings.run.resume)
    history = Path(job.history)
    if resume is None:
        history.unlink(missing_ok=True)
    resources: dict[str, float] = {"CPU": train.num_cpus}
    if train.use_gpu:
        resources["GPU"] = 1
    trainer = TorchTrainer(
        worker.run,
        train_loop_config={"job": replace(job, resume=None if resume is None else str(resume))},
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers, use_gpu=train.use_gpu, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name=f"attempt-{uuid.uuid4().hex[:12]}",  # a name that was used before would make Ray Train resume by itself
            storage_path=str(checkpoint_root),
            failure_config=ray.train.FailureConfig(max_failures=train.max_failures, controller_failure_limit=3),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    )
    # Ray Train would take a waiting group out of the queue each minute; megu_dist.placement gives up, and says why.
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(2 * job.settings.run.placement_timeout_s)
    with _Follow(history, progress):
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

    Such a group shrinks and grows with the cluster, each time from the newest checkpoint. It takes whatever it finds, so
    without GPUs its most leaves CPUs of the cluster as it is now to the tasks that read.
    """
    import ray

    if train.min_workers in (None, train.num_workers):
        check_resources(train.num_workers, train.num_cpus, train.use_gpu)
        return train.num_workers
    least = train.min_workers or 1
    check_resources(least, train.num_cpus, train.use_gpu, "train.min_workers")
    if train.use_gpu:
        return least, train.num_workers
    room = int((ray.cluster_resources().get("CPU", 0) - READERS) // train.num_cpus)
    return least, max(least, min(train.num_workers, room))


def check_resources(workers: int, cpus: float, use_gpu: bool, key: str = "train.num_workers") -> None:
    """Refuses a worker group that the cluster could never hold: Ray would wait for it for ever."""
    import ray

    have = ray.cluster_resources()
    for name, per_worker in (("CPU", cpus), ("GPU", 1.0 if use_gpu else 0.0)):
        if workers * per_worker > have.get(name, 0):
            raise UserError(
                f"{key}={workers} needs {workers * per_worker:g} {name}s, but the cluster has "
                f"{have.get(name, 0):g}; ask for fewer workers"
                + (" or set train.use_gpu=false" if name == "GPU" else "")
            )


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
