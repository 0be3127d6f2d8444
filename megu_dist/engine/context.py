"""The loop that every method shares: epochs over forget and retained rows, checkpoints, the stop rule, the log."""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from megu_dist.config.schema import MeguSettings, TrainSettings
from megu_dist.data import plan, stream
from megu_dist.engine import batch_norm, checkpoints
from megu_dist.engine.base import Engine
from megu_dist.engine.batch import Batch, Part, Rows
from megu_dist.engine.calibrate import Calibrator
from megu_dist.engine.coverage import Coverage
from megu_dist.errors import UserError
from megu_dist.models.preprocess import Preprocess

LOGS_PER_EPOCH = 20
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
    forget_classes: tuple[int, ...] = ()  # classes that are forgotten as a whole
    result: FitResult | None = field(default=None, init=False)
    told: dict[str, Any] = field(default_factory=dict, init=False)  # what a method says of itself
    _edit: Callable[[State], State] | None = field(default=None, init=False)

    @property
    def passes(self) -> int:
        """Forward passes of a step on a worker, so that none holds more than about ``train.micro_batch_size`` images."""
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
        else:  # a method that edits weights without a fit
            state = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()} if self.rank == 0 else None
        return state if state is None or self._edit is None else self._edit(state)

    def fit(
        self, model: nn.Module, forget: Rows | None, retain: Rows | None, loss: Loss, pixels: Pixels = Part.pixels
    ) -> nn.Module:
        """Fine-tunes ``model``. One epoch takes each forget row once and the retained sample once, evenly mixed.

        ``pixels`` turns a forget part into images (pixel units); ``loss(forget_logits, retain_logits, batch)`` returns
        this worker's sums over forget and retained images and the forget weight λ_f. The step's loss is
        λ_f · Σ_f / n_f + Σ_r / n_r with *global* counts n, whatever the number of workers.
        """
        counts = [rows.count for rows in (forget, retain) if rows is not None]
        steps = plan.num_steps(sum(counts), self.train.batch_size)
        seen = None if self.resume is None else checkpoints.progress_of(self.resume)
        first_epoch = 0 if seen is None else seen.epoch + 1
        stopped = "fixed" if seen is None else seen.stopped
        end = first_epoch if stopped == "calibrated" else self.train.epochs
        if first_epoch < end:
            batches = self._batches(first_epoch, steps, forget, retain)  # read while the engine is set up
        model = batch_norm.apply(model.to(self.device), self.train.batch_norm, self.world, self.device)
        if self.train.gradient_checkpointing:
            if not getattr(model, "supports_gradient_checkpointing", False):
                raise UserError(f"train.gradient_checkpointing: {type(model).__name__} does not support it")
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]
        self.engine.setup(model, self.train, self.device, self.passes)
        if self.resume is not None:
            self.engine.load(self.resume)
        log = _Log(self, steps, keep_until=first_epoch)
        epoch = first_epoch - 1
        for epoch in range(first_epoch, end):
            model.train()
            if epoch > first_epoch:
                batches = self._batches(epoch, steps, forget, retain)
            covered = None
            if forget is not None and forget.asked is not None and len(forget.rows(epoch)):
                covered = Coverage(forget.asked, self.device)
            if self._epoch(model, epoch, steps, batches, loss, pixels, log, covered):
                stopped = "calibrated"
            elif covered is not None:
                covered.check(self.world, epoch)
            last = stopped == "calibrated" or epoch + 1 == end
            if last or (epoch + 1) % self.train.checkpoint_every == 0:
                self._checkpoint(model, checkpoints.Progress(epoch, stopped))
            if last:
                break
        self.result = FitResult(epoch + 1, log.steps_done, stopped)
        return model

    def _epoch(
        self,
        model: nn.Module,
        epoch: int,
        steps: int,
        batches: Iterable[Batch],
        loss: Loss,
        pixels: Pixels,
        log: _Log,
        covered: Coverage | None,
    ) -> bool:
        """One epoch; True when the stop rule ended it early."""
        for step, batch in enumerate(batches):
            batch.epoch, batch.progress = epoch, (epoch * steps + step) / (self.train.epochs * steps)
            torch.manual_seed((self.seed * 1_000_003 + epoch * steps + step) * 65_537 + self.rank)  # dropout
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
        total = weight * forget_sum / max(1, batch.forget.total) + retain_sum / max(1, batch.retain.total)
        total = total if len(logits) else total + logits.sum()  # the zero of a gradient
        self.engine.step(total * self.world, lr, last)  # engines average gradients over workers; this makes it a sum
        return forget_sum.detach(), retain_sum.detach()

    def _batches(self, epoch: int, steps: int, forget: Rows | None, retain: Rows | None) -> Iterable[Batch]:
        """The epoch's steps on this worker; both streams are read in the background from this call on."""

        def parts(rows: Rows | None) -> Iterable[Part]:
            if rows is None:
                return (Part(0) for _ in range(steps))
            return stream.ReadAhead(rows.steps(epoch, steps, 0, self.rank, self.world, self.device))

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

    def _checkpoint(self, model: nn.Module, progress: checkpoints.Progress) -> None:
        if self.world > 1 and self.train.batch_norm == "local":
            batch_norm.average_statistics(model)
        if self.report is None:
            return
        with tempfile.TemporaryDirectory(prefix="megu-checkpoint-") as folder:
            self.engine.save(Path(folder))
            checkpoints.seal(Path(folder), self.rank, self.world, progress)
            self.report({"epoch": progress.epoch}, Path(folder), checkpoints.name_of(progress.epoch))


class _Log:
    """Writes one JSON line per twentieth of an epoch on rank 0, with losses averaged over all workers."""

    def __init__(self, context: Context, steps: int, keep_until: int) -> None:
        self.context, self.steps, self.every = context, steps, max(1, steps // LOGS_PER_EPOCH)
        self.sums = torch.zeros(4, dtype=torch.float64, device=context.device)
        self.start, self.steps_done = time.monotonic(), keep_until * steps
        if context.rank == 0:
            self._drop_lines_after(keep_until)

    def _drop_lines_after(self, epoch: int) -> None:
        """A resumed fit repeats the epochs after its checkpoint; their earlier lines go."""
        path = self.context.history
        old = path.read_text().splitlines() if path.is_file() else []
        kept = [line for line in old if line.endswith("}") and json.loads(line)["epoch"] < epoch]
        path.write_text("".join(line + "\n" for line in kept))

    def add(self, epoch: int, step: int, lr: float, batch: Batch, forget: Tensor, retain: Tensor) -> None:
        """Adds one step; every rank must call it at the same steps, since a logged one is summed over workers."""
        self.steps_done += 1
        counts = torch.tensor([len(batch.forget), len(batch.retain)], dtype=torch.float64, device=self.sums.device)
        self.sums += torch.cat([torch.stack([forget, retain]).double(), counts])
        if (step + 1) % self.every and step + 1 != self.steps:
            return
        if self.context.world > 1:
            distributed.all_reduce(self.sums)
        forget_sum, retain_sum, n_forget, n_retain = self.sums.tolist()
        self.sums.zero_()
        if self.context.rank != 0:
            return
        losses = [forget_sum / n_forget if n_forget else None, retain_sum / n_retain if n_retain else None]
        line = {
            "epoch": epoch,
            "step": step + 1,
            "steps": self.steps,
            "epochs": self.context.train.epochs,
            "loss": sum(v for v in losses if v is not None),
            "loss_forget": losses[0],
            "loss_retain": losses[1],
            "lr": lr,
            "images": int(n_forget + n_retain),
            "seconds": round(time.monotonic() - self.start, 3),
        }
        with self.context.history.open("a") as file:
            file.write(json.dumps(line) + "\n")
