"""What runs on every Ray Train worker."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from megu_dist.config.registry import lookup
from megu_dist.config.schema import MeguSettings
from megu_dist.data import stream
from megu_dist.data.base import Source
from megu_dist.models.preprocess import Preprocess


@dataclass(frozen=True)
class TrainJob:
    """Everything a worker needs; small enough to be sent with the job."""

    settings: MeguSettings
    source: Source
    class_names: list[str]
    preprocess: Preprocess
    forget_rows: np.ndarray  # rows of the training split that are forgotten, or left out of the retrained reference
    seed: int
    out: str  # folder that receives model/
    history: str  # the log of losses, beside the checkpoints, so that a resumed run continues it
    model_folder: str | None  # the checkpoint to start from; none: random weights
    perturbed: str | None  # folder of the perturb stage, for methods that need it
    resume: str | None = None
    until: int | None = None  # epochs after which to stop, though the schedule has more
    forget_classes: tuple[int, ...] = ()
    already_rows: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # forgotten before: not retained
    already_classes: tuple[int, ...] = ()


def run(config: dict[str, Any]) -> dict[str, Any] | None:
    """The train function: builds the model, runs the method, writes the model on rank 0. Returns what it did."""
    from ray import train as ray_train

    session, job = ray_train.get_context(), config["job"]
    if job.settings.train.elastic and not job.settings.train.use_gpu:
        stream.without_cpus(max(2, len(os.sched_getaffinity(0)) // session.get_local_world_size()))
    resumed = ray_train.get_checkpoint()
    place = Place(
        rank=session.get_world_rank(),
        world=session.get_world_size(),
        local_world=session.get_local_world_size(),
        device=ray_train.torch.get_device(),
        report=_report,
        resume=Path(resumed.path) if resumed is not None else (Path(job.resume) if job.resume else None),
    )
    return work(job, place)


@dataclass(frozen=True)
class Place:
    """Where a worker stands, where its checkpoints go and which one it goes on from."""

    rank: int
    world: int
    local_world: int
    device: Any
    report: Callable[[dict[str, Any], Path | None, str], None]
    resume: Path | None


def work(job: TrainJob, place: Place) -> dict[str, Any] | None:
    """One worker's part of ``job``."""
    import torch

    from megu_dist.engine.base import set_threads
    from megu_dist.engine.context import Context
    from megu_dist.engine.trainable import freeze

    rank, world, device = place.rank, place.world, place.device
    set_threads(job.settings.train.threads, place.local_world)
    torch.manual_seed(job.seed)
    context = Context(
        settings=job.settings,
        engine=lookup("engine", job.settings.engine.name).target(job.settings.engine),
        preprocess=job.preprocess,
        device=device,
        rank=rank,
        world=world,
        seed=job.seed,
        history=Path(job.history),
        calibrator=_calibrator(job, device, rank, world),
        resume=place.resume,
        report=place.report,
        until=job.until,
        forget_classes=job.forget_classes,
        already_classes=job.already_classes,
    )
    method = lookup("method", job.settings.method.name).target(job.settings.method)
    forget, retain = _rows(job, method.needs_perturbed)
    try:
        model = method.unlearn(context, freeze(_model(job), job.settings.train), forget, retain)
    except Exception:
        traceback.print_exc()  # Ray Train reports one rank's error; the log keeps every rank's
        raise
    return _finish(job, context, model)


def _report(metrics: dict[str, Any], folder: Path | None, name: str) -> None:
    from ray import train as ray_train

    checkpoint = None if folder is None else ray_train.Checkpoint.from_directory(str(folder))
    ray_train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=name)


def _model(job: TrainJob) -> Any:
    if job.model_folder is not None:
        from megu_dist.models.checkpoint import open_checkpoint

        return open_checkpoint(job.model_folder).load()
    return lookup("model", job.settings.model.name).target(job.settings.model).build(job.class_names)


def _rows(job: TrainJob, perturbed: bool) -> tuple[Any, Any]:
    """The forget and retain rows as the fit loop wants them."""
    from megu_dist.data import plan
    from megu_dist.data.perturbed import PerturbedStore
    from megu_dist.data.readers import Augment, ImageReader, PerturbedReader
    from megu_dist.engine.batch import Rows

    train, source, seed = job.settings.train, job.source, job.seed
    image_bytes = job.preprocess.image_bytes
    kept = plan.complement(source.num_rows("train"), np.union1d(job.forget_rows, job.already_rows))
    size = len(kept) if train.retain_per_epoch is None else min(train.retain_per_epoch, len(kept))

    def retain_order(epoch: int) -> np.ndarray:
        chosen = plan.sample(kept, train.retain_per_epoch, seed, epoch)
        return plan.epoch_order(chosen, seed, epoch, train.shuffle_window, lambda rows: source.locality("train", rows))

    def image_reader(epoch: int) -> ImageReader:
        return ImageReader(source, "train", job.preprocess, Augment(train.augment, seed, epoch), skip_bad=True)

    def plain_reader(epoch: int) -> ImageReader:
        return ImageReader(source, "train", job.preprocess, skip_bad=True)

    encoded = source.encoded_bytes("train")
    retain = Rows(retain_order, image_reader, image_bytes, size, len(kept), plain_reader, encoded_bytes=encoded)
    wanted = np.asarray(job.forget_rows)
    if not perturbed:
        if len(wanted) == 0:
            return None, retain

        def forget_order(epoch: int) -> np.ndarray:
            return plan.epoch_order(
                wanted, seed, epoch, train.shuffle_window, lambda rows: source.locality("train", rows)
            )

        return Rows(
            forget_order, image_reader, image_bytes, len(wanted), len(wanted), plain_reader, wanted, encoded
        ), retain
    if job.perturbed is None:
        raise RuntimeError("the method needs perturbed images, but the perturb stage was not run")
    store = PerturbedStore(Path(job.perturbed))
    forget = Rows(
        lambda epoch: plan.epoch_order(np.arange(len(store)), seed, epoch, len(store)),
        lambda epoch: PerturbedReader(store, epoch, Augment(train.augment, seed, epoch)),
        3 * image_bytes,
        len(store),
        plain_reader=lambda epoch: PerturbedReader(store, epoch),
        asked=wanted,
    )
    return forget, retain


def _calibrator(job: TrainJob, device: Any, rank: int, world: int) -> Any:
    if job.settings.train.stop != "calibrated" or len(job.forget_rows) == 0:
        return None
    import torch

    from megu_dist.data.readers import ImageReader
    from megu_dist.engine.calibrate import Calibrator, share

    def side(split: str, rows: np.ndarray) -> Any:
        mine = share(rows, job.seed, rank, world)
        arrays = ImageReader(job.source, split, job.preprocess)({"row": mine})
        return torch.from_numpy(arrays["image"]).to(device), torch.from_numpy(np.array(arrays["label"])).to(device)

    unseen = np.arange(job.source.num_rows("validation"))
    if job.already_classes:  # a forgotten class's images are no measure of what is still known
        pieces = job.source.pieces("validation")
        labels = np.concatenate([job.source.index(piece)["label"].to_numpy() for piece in pieces])
        unseen = unseen[~np.isin(labels, job.already_classes)]
    return Calibrator(side("train", job.forget_rows), side("validation", unseen), world)


def _finish(job: TrainJob, context: Any, model: Any) -> dict[str, Any] | None:
    """Gathers the weights (collective) and exports them on rank 0."""
    from megu_dist.engine.context import FitResult
    from megu_dist.models.checkpoint import export

    state = context.final_weights(model)
    if context.rank != 0:
        return None
    origin = Path(job.model_folder) if job.model_folder else None
    export(model, state, job.preprocess, Path(job.out) / "model", origin)
    result = context.result or FitResult(0, 0, "none")
    return {
        **context.told,
        "world_size": context.world,
        "epochs": result.epochs,
        "steps": result.steps,
        "stopped": result.stopped,
        "device": str(context.device),
        "pid": os.getpid(),
    }
