"""The log of a fit: one JSON line per twentieth of an epoch, without a gap or a repetition when a fit is resumed."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed

if TYPE_CHECKING:
    from megu_dist.engine.batch import Batch
    from megu_dist.engine.context import Context

LOGS_PER_EPOCH = 20


class History:
    """Rank 0 writes the lines, with losses averaged over all workers; ``start`` is the first (epoch, step) of the fit."""

    def __init__(self, context: Context, steps: int, start: tuple[int, int]) -> None:
        self.context, self.steps, self.every = context, steps, max(1, steps // LOGS_PER_EPOCH)
        self.sums = torch.zeros(4, dtype=torch.float64, device=context.device)
        self.began, self.steps_done = time.monotonic(), start[0] * steps + start[1]
        if context.rank == 0:
            self._drop_lines_after(*start)

    def _drop_lines_after(self, epoch: int, step: int) -> None:
        """A resumed fit repeats the steps after its checkpoint; their earlier lines go."""
        path = self.context.history
        old = path.read_text().splitlines() if path.is_file() else []
        whole = ((line, json.loads(line)) for line in old if line.endswith("}"))
        kept = [line for line, said in whole if (said["epoch"], said["step"]) <= (epoch, step)]
        path.write_text("".join(line + "\n" for line in kept))

    def state(self) -> tuple[Tensor, float]:
        """Sums over all workers since the last line, and seconds so far. Collective."""
        sums = self.sums.clone()
        if self.context.world > 1:
            distributed.all_reduce(sums)
        return sums.cpu(), time.monotonic() - self.began

    def restore(self, sums: Tensor, seconds: float) -> None:
        """Goes on from :meth:`state`; on rank 0 only, which then holds what all workers summed."""
        self.sums += sums.to(self.sums.device)
        self.began -= seconds

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
            "seconds": round(time.monotonic() - self.began, 3),
        }
        with self.context.history.open("a") as file:
            file.write(json.dumps(line) + "\n")
