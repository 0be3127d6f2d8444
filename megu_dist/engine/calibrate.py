"""The calibrated stop rule: forget images should look like images the model never trained on, not worse.

Compares accuracy and mean loss on the forget images (their true labels) with those on unseen validation images; the
fit ends at the first look at which forget accuracy is no higher, or forget loss no lower, than the unseen images', while
those are still recognised as before (a model that a first large step has thrown out of balance knows neither).
In the random scenario this is how a retrained model behaves (its forget accuracy is near its test accuracy).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, distributed
from torch.nn import functional as F

LIMIT = 2048  # images looked at on each side, over all workers
LOST = 0.02  # accuracy on unseen images that may be missing when the fit ends


@dataclass
class Calibrator:
    """This worker's share of forget and unseen images: uint8 (N, C, H, W) and labels."""

    forget: tuple[Tensor, Tensor]
    unseen: tuple[Tensor, Tensor]
    world: int
    before: float = field(default=0.0, init=False)  # accuracy of the original model on the unseen images

    def begin(self, forward: Callable[[Tensor], Tensor]) -> None:
        """Looks at the original model. Collective."""
        self.before = self._look(forward)[2]

    def reached(self, forward: Callable[[Tensor], Tensor]) -> bool:
        """Collective: the same answer on every worker. The model is in evaluation mode."""
        forget, forget_loss, unseen, unseen_loss = self._look(forward)
        return unseen >= self.before - LOST and (forget <= unseen or forget_loss >= unseen_loss)

    @torch.no_grad()
    def _look(self, forward: Callable[[Tensor], Tensor]) -> tuple[float, float, float, float]:
        """Accuracy and mean loss, of forget and of unseen images."""
        sums = torch.cat([self._sums(forward, *self.forget), self._sums(forward, *self.unseen)])
        if self.world > 1:
            distributed.all_reduce(sums)
        f_right, f_loss, f_n, u_right, u_loss, u_n = sums.tolist()
        return f_right / f_n, f_loss / f_n, u_right / u_n, u_loss / u_n

    def _sums(self, forward: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> Tensor:
        out = torch.zeros(3, dtype=torch.float64, device=images.device)
        for start in range(0, len(images), 256):
            part = labels[start : start + 256]
            logits = forward(images[start : start + 256].float() / 255)
            loss = F.cross_entropy(logits, part, reduction="sum")
            out += torch.stack([(logits.argmax(1) == part).sum(), loss, torch.tensor(len(part))]).double()
        return out


def share(rows: np.ndarray, seed: int, rank: int, world: int) -> np.ndarray:
    """A seeded sample of at most :data:`LIMIT` rows, padded to a multiple of ``world``, cut for this worker.

    Every worker gets the same number (a row may come twice), since sharded engines run forward passes in step.
    """
    chosen = np.random.default_rng([seed, 3]).permutation(rows)[:LIMIT]
    chosen = np.resize(chosen, -(-len(chosen) // world) * world)
    return chosen[rank::world]
