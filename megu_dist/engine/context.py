"""The loop that every method shares: epochs over forget and retained rows, checkpoints, the stop rule, the log."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn

from megu_dist import scratch
from megu_dist.config.schema import SINGLE, MeguSettings, TrainSettings
from megu_dist.data import plan, stream
from megu_dist.engine import batch_norm, checkpoints, trainable
from megu_dist.engine.base import Engine
from megu_dist.engine.batch import Batch, Part, Rows
from megu_dist.engine.calibrate import Calibrator
from megu_dist.engine.coverage import Coverage
from megu_dist.engine.history import History
from megu_dist.errors import UserError
from megu_dist.models.preprocess import Preprocess

FIT_FILE = "fit.npz"  # in a checkpoint: what the fit itself knows, beside the engine's state
Pixels = Callable[[Part], Tensor]
State = dict[str, Tensor]
Loss = Callable[[Tensor, Tensor, Batch], tuple[Tensor, Tensor, float]]


@dataclass
class FitResult:
    """What a fit ended with."""

    epochs: int
    steps: int
    stopped: str  # fixed | calibrated


@dataclass
class Context:
    """What a method gets on each worker: settings, devices, and :meth:`fit`."""

    settings: MeguSettings
    engine: Engine
    preprocess: Preprocess
    device: torch.device
    rank: int
    world: int
    seed: int
    history: Path
    calibrator: Calibrator | None = None
    resume: Path | None = None
    report: Callable[[dict[str, Any], Path | None, str], None] | None = None
    until: int | None = None  # epochs after which to stop, though the schedule has more
    forget_classes: tuple[int, ...] = ()  # classes that are forgotten as a whole
    already_classes: tuple[int, ...] = ()  # classes that were forgotten as a whole before
    result: FitResult | None = field(default=None, init=False)
    told: dict[str, Any] = field(default_factory=dict, init=False)  # what a method says of itself
    _edit: Callable[[State], State] | None = field(default=None, init=False)

    @property
    def gone_classes(self) -> tuple[int, ...]:
        """Classes that no image may be moved to."""
        return (*self.forget_classes, *self.already_classes)

    @property
    def by_image(self) -> bool:
        """Whether λ_f is the weight of each forget image, against 1 of a retained one, and not of them all together.

        So it is for single images: as a weight of the whole set it would give each of a few of them that of dozens of
        retained ones, and throw a model out of balance that has to change little.
        """
        return self.settings.forget.scenario in SINGLE and hasattr(self.settings.method, "lambda_forget")

    @property
    def passes(self) -> int:
        """Forward passes of a step on a worker, so that none holds more than about ``train.micro_batch_size`` "
        "images."""
        size = self.train.micro_batch_size
        return 1 if size is None else max(1, -(-self.train.batch_size // (self.world * size)))

    @property
    def train(self) -> TrainSettings:
        """The training settings."""
        return self.settings.train

    def once(self, rows: Rows) -> Iterable[Part]:
        """This worker's share of the first epoch's rows, in batches, without a training step; images not augmented."""
        steps = plan.num_steps(rows.count, self.train.batch_size)
        return stream.ReadAhead(rows.plain().steps(0, steps, 0, self.rank, self.world, self.device))

    def all_reduce(self, tensors: Iterable[Tensor]) -> None:
        """Sums each tensor over the workers, in place."""
        if self.world > 1:
            for tensor in tensors:
                distributed.all_reduce(tensor)

    def untrained(self, model: nn.Module) -> nn.Module:
        """The same architecture with random weights that depend on the seed alone."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            return type(model)(model.config)

    def edit_weights(self, edit: Callable[[State], State]) -> None:
        """Has ``edit`` applied to the whole model's weights, on the CPU of rank 0, after the last step."""
        self._edit = edit

    def say(self, **facts: Any) -> None:
        """Adds facts to the stage's record."""
        self.told.update(facts)

    def final_weights(self, model: nn.Module) -> State | None:
        """The whole model's weights (CPU, fp32) on rank 0, None elsewhere. Collective."""
        if self.result is not None:
            state = self.engine.state_dict()
            if state is not None and self.train.trainable == "lora":
                state = trainable.merged(state)
        else:  # a method that edits weights without a fit
            state = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()} if self.rank == 0 else None
        return state if state is None or self._edit is None else self._edit(state)

    def fit(
        self, model: nn.Module, forget: Rows | None, retain: Rows | None, loss: Loss, pixels: Pixels = Part.pixels
    ) -> nn.Module:
        """Fine-tunes ``model``. One epoch takes each forget row once and the retained sample once, evenly mixed.

        ``pixels`` turns a forget part into images (pixel units); ``loss(forget_logits, retain_logits, batch)`` returns
        this worker's sums over forget and retained images and the forget weight λ_f. The step's loss is
        λ_f · Σ_f / n_f + Σ_r / n_r with *global* counts n, whatever the number of workers; with :attr:`by_image`,
        (λ_f · Σ_f + Σ_r) / n_r.
        """
        counts = [rows.count for rows in (forget, retain) if rows is not None]
        steps = plan.num_steps(sum(counts), self.train.batch_size)
        seen = None if self.resume is None else checkpoints.progress_of(self.resume)
        start = (0, 0) if seen is None else seen.next
        stopped = "fixed" if seen is None else seen.stopped
        first_epoch = start[0]
        end = first_epoch if stopped == "calibrated" else min(self.train.epochs, self.until or self.train.epochs)
        if first_epoch < end:
            batches = self._batches(*start, steps, forget, retain)  # read while the engine is set up
        model = trainable.add_low_rank(model, self.train, self.seed)
        model = batch_norm.apply(model.to(self.device), self.train.batch_norm, self.world, self.device)
        if self.train.gradient_checkpointing:
            if not getattr(model, "supports_gradient_checkpointing", False):
                raise UserError(
                    f"train.gradient_checkpointing: {type(model).__name__} does not support it; leave it out, "
                    "or set train.micro_batch_size for less memory"
                )
            trainable.recompute_activations(model)
        self.engine.setup(model, self.train, self.device, self.passes)
        if self.calibrator is not None:
            model.eval()
            self.calibrator.begin(lambda x: self.engine.forward(self.model_input(x)))
        log = History(self, steps, start)
        before = None if self.resume is None else self._restore(self.resume, log)
        epoch = first_epoch - 1
        for epoch in range(first_epoch, end):
            model.train()
            if epoch > first_epoch:
                batches, before = self._batches(epoch, 0, steps, forget, retain), None
            covered = None
            if forget is not None and forget.asked is not None and len(forget.rows(epoch)):
                covered = Coverage(forget.asked, self.device, before)
            first = start[1] if epoch == first_epoch else 0
            if self._epoch(model, epoch, first, steps, batches, loss, pixels, log, covered):
                stopped = "calibrated"
            elif covered is not None:
                covered.check(self.world, epoch)
            last = stopped == "calibrated" or epoch + 1 == end
            if last or (epoch + 1) % self.train.checkpoint_every == 0 or self._due((epoch + 1) * steps):
                self._checkpoint(model, checkpoints.Progress(epoch, stopped), log, None)
            if last:
                break
        self.result = FitResult(epoch + 1, log.steps_done, stopped)
        return model

    def _epoch(
        self,
        model: nn.Module,
        epoch: int,
        first: int,
        steps: int,
        batches: Iterable[Batch],
        loss: Loss,
        pixels: Pixels,
        log: History,
        covered: Coverage | None,
    ) -> bool:
        """One epoch from step ``first`` on; True when the stop rule ended it early."""
        for step, batch in enumerate(batches, first):
            batch.epoch, batch.progress = epoch, (epoch * steps + step) / (self.train.epochs * steps)
            # Dropout: the generators of all devices follow from the step, so a checkpoint has no state of them to keep.
            torch.manual_seed((self.seed * 1_000_003 + epoch * steps + step) * 65_537 + self.rank)
            lr = self._learning_rate(epoch * steps + step, self.train.epochs * steps)
            sums = [
                self._pass(part, k + 1 == self.passes, loss, pixels, lr)
                for k, part in enumerate(batch.cut(self.passes))
            ]
            forget_sum, retain_sum = (torch.stack(side).sum() for side in zip(*sums, strict=True))
            log.add(epoch, step, lr, batch, forget_sum, retain_sum)
            if covered is not None:
                covered.add(batch.forget)
            if self.calibrator is not None and (step + 1) % self.train.calibrate_every == 0:
                model.eval()
                done = self.calibrator.reached(lambda x: self.engine.forward(self.model_input(x)))
                model.train()
                if done:
                    return True
            if step + 1 < steps and self._due(epoch * steps + step + 1):
                self._checkpoint(model, checkpoints.Progress(epoch, steps=step + 1), log, covered)
        return False

    def _pass(self, batch: Batch, last: bool, loss: Loss, pixels: Pixels, lr: float) -> tuple[Tensor, Tensor]:
        """One forward and backward pass over (a part of) a step's images; this worker's loss sums."""
        images = [pixels(batch.forget)] if len(batch.forget) else []
        images += [batch.retain.pixels()] if len(batch.retain) else []
        # A worker without an image in a small batch still takes part in every collective operation.
        images = images or [torch.zeros(0, *self.preprocess.shape, device=self.device)]
        logits = self.engine.forward(self.model_input(torch.cat(images)), last)
        split = len(batch.forget)
        forget_sum, retain_sum, weight = loss(logits[:split], logits[split:], batch)
        if self.by_image and batch.retain.total:
            weight *= batch.forget.total / batch.retain.total
        total = weight * forget_sum / max(1, batch.forget.total) + retain_sum / max(1, batch.retain.total)
        total = total if len(logits) else total + logits.sum()  # the zero of a gradient
        self.engine.step(total * self.world, lr, last)  # engines average gradients over workers; this makes it a sum
        return forget_sum.detach(), retain_sum.detach()

    def _batches(self, epoch: int, first: int, steps: int, forget: Rows | None, retain: Rows | None) -> Iterable[Batch]:
        """The epoch's steps from ``first`` on; both streams are read in the background from this call on."""

        def parts(rows: Rows | None) -> Iterable[Part]:
            if rows is None:
                return (Part(0) for _ in range(first, steps))
            return stream.ReadAhead(rows.steps(epoch, steps, first, self.rank, self.world, self.device))

        return (Batch(f, r) for f, r in zip(parts(forget), parts(retain), strict=True))

    def model_input(self, pixels: Tensor) -> Tensor:
        """Pixel units [0, 1], (N, C, H, W) → what the model takes."""
        # Channels-last images make convolutions run channels-last; the weights stay as they are, because DeepSpeed
        # broadcasts and flattens them as contiguous memory.
        return self.preprocess.normalise(pixels).contiguous(memory_format=torch.channels_last)

    def _learning_rate(self, step: int, total: int) -> float:
        """Linear warm-up over ``warmup_fraction`` of the steps, then cosine to zero."""
        warm = round(total * self.train.warmup_fraction)
        if step < warm:
            return self.train.lr * (step + 1) / warm
        return self.train.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))

    def _due(self, steps_done: int) -> bool:
        """Whether ``train.checkpoint_steps`` asks for a checkpoint after so many steps of the fit."""
        every = self.train.checkpoint_steps
        return every is not None and steps_done % every == 0

    def _checkpoint(
        self, model: nn.Module, progress: checkpoints.Progress, log: History, covered: Coverage | None
    ) -> None:
        if self.world > 1 and self.train.batch_norm == "local":
            batch_norm.average_statistics(model)
        if self.report is None:
            return
        sums, seconds = log.state()
        times = None if covered is None else covered.over_all_workers(self.world)
        with scratch.folder("checkpoint") as folder:
            self.engine.save(folder)
            if self.rank == 0:
                np.savez(folder / FIT_FILE, sums=sums, seconds=seconds, times=[] if times is None else times)
            checkpoints.seal(folder, self.rank, self.world, progress)
            name = checkpoints.name_of(progress, self.world)
            self.report({"epoch": progress.epoch}, folder, name)

    def _restore(self, folder: Path, log: History) -> Tensor | None:
        """Engine and log as in a checkpoint; what rank 0 knows of the forget rows that its epoch has seen."""
        world = checkpoints.world_of(folder)
        lost = self.engine.load(folder, world)
        epoch, step = checkpoints.progress_of(folder).next
        self.say(resumed={"epoch": epoch, "step": step, "workers": world, "fresh_optimizer": lost})
        if self.rank or not (folder / FIT_FILE).is_file():
            return None
        with np.load(folder / FIT_FILE) as kept:
            log.restore(torch.from_numpy(kept["sums"]), float(kept["seconds"]))
            return torch.from_numpy(kept["times"]) if len(kept["times"]) else None
