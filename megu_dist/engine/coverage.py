"""Whether an epoch took every forget image exactly once, over all workers: the request is covered, or the run stops."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, distributed

from megu_dist.engine.batch import Part


class Coverage:
    """Counts how often each asked row is seen; rows nobody asked for are counted in a last place.

    ``before``: counts of the epoch's steps before a checkpoint, given on one worker.
    """

    def __init__(self, asked: np.ndarray, device: torch.device, before: Tensor | None = None) -> None:
        self.asked = torch.from_numpy(np.sort(asked)).to(device)
        self.times = torch.zeros(len(asked) + 1, dtype=torch.int64, device=device)
        if before is not None:
            self.times += before.to(device)

    def add(self, part: Part) -> None:
        """The forget images of one step on this worker."""
        if len(part) == 0:
            return
        last = len(self.asked)
        place = torch.searchsorted(self.asked, part.row).clamp(max=last - 1)
        place = torch.where(self.asked[place] == part.row, place, last)
        self.times += torch.bincount(place, minlength=last + 1)

    def over_all_workers(self, world: int) -> Tensor:
        """The counts so far, summed over workers, on the CPU. Collective."""
        times = self.times.clone()
        if world > 1:
            distributed.all_reduce(times)
        return times.cpu()

    def check(self, world: int, epoch: int) -> None:
        """Collective; raises on every worker alike unless each asked row was seen once and no other row was."""
        times = self.over_all_workers(world)
        wrong = torch.nonzero(times[:-1] != 1).flatten()
        if len(wrong) or times[-1]:
            rows = self.asked.cpu()[wrong[:5]].tolist()
            raise RuntimeError(
                f"epoch {epoch}: {len(wrong)} of {len(self.asked)} forget images were not seen exactly once (rows "
                f"{rows} …), and {int(times[-1])} images that were not asked for were"
            )
