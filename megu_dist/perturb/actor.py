"""The model actor of the perturb stage: labels and noise for a block of forget images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from megu_dist.config.schema import PerturbSettings
from megu_dist.data.perturbed import make_table
from megu_dist.oracle.transition import Transition
from megu_dist.perturb.labels import draw_labels, label_distribution
from megu_dist.perturb.noise import fragment_align, quantise

if TYPE_CHECKING:
    from torch import Tensor


class Perturber:
    """Holds the frozen original model; called by Ray Data with decoded blocks, writes one Parquet file per block."""

    def __init__(
        self,
        model_folder: str,
        transition: Transition,
        forgotten: list[int],
        settings: PerturbSettings,
        seed: int,
        out: str,
        actors: int,
        fine: bool = False,
    ) -> None:
        import torch

        import megu_dist  # noqa: F401  (registers the CIFAR ResNet)
        from megu_dist.engine.base import set_threads
        from megu_dist.models.checkpoint import open_checkpoint

        set_threads(0, actors)
        checkpoint = open_checkpoint(model_folder)
        self.device = torch.device("cuda" if settings.num_gpus > 0 and torch.cuda.is_available() else "cpu")
        self.model = checkpoint.load().requires_grad_(False).to(self.device, memory_format=torch.channels_last)
        self.preprocess = checkpoint.preprocess
        self.transition, self.forgotten, self.settings, self.seed = transition, forgotten, settings, seed
        self.fine, self.out = fine, Path(out)

    def __call__(self, block: dict[str, np.ndarray]) -> pa.Table:
        """{row, id, label, image, fine (for sub-classes)} → file in ``out``; returns the number of rows."""
        size = self.settings.batch_size
        count = len(block["row"])
        parts = [self._perturb({k: v[s : s + size] for k, v in block.items()}) for s in range(0, count, size)]
        arrays = dict(block) | {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
        table = make_table(arrays, self.preprocess.shape, self.settings.epsilon)
        name = f"part-{int(block['row'].min()):010d}.parquet"
        pq.write_table(table, self.out / f".{name}", row_group_size=256, compression="zstd")
        (self.out / f".{name}").rename(self.out / name)
        return pa.table({"rows": [count]})

    def _perturb(self, block: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        import torch

        s = self.settings
        pixels = torch.from_numpy(np.array(block["image"])).to(self.device).float() / 255
        labels = np.asarray(block["label"])
        with torch.no_grad():
            log_probs = self._logits(pixels).log_softmax(1).double().cpu().numpy()
        rows_of_t = self.transition.rows_for(np.asarray(block["fine"]) if self.fine else labels)
        q = label_distribution(log_probs, rows_of_t, None if self.fine else labels, self.forgotten, s.kappa)
        drawn = draw_labels(q, list(block["id"]), self.seed, s.draws, s.label_policy)
        made = {"perturbing_label": drawn}
        if s.noise in ("both", "positive"):
            made["noise_pos"] = np.stack([self._noise(pixels, drawn[:, d], True) for d in range(s.draws)], 1)
        if s.noise in ("both", "negative"):
            made["noise_neg"] = self._noise(pixels, labels, False)
        return made

    def _noise(self, pixels: Tensor, target: np.ndarray, towards: bool) -> np.ndarray:
        import torch

        goal = torch.from_numpy(np.array(target)).to(self.device)
        noise = fragment_align(self._logits, pixels, goal, towards, self.settings.epsilon, self.settings.steps)
        return quantise(noise, self.settings.epsilon).cpu().numpy()

    def _logits(self, pixels: Tensor) -> Tensor:
        from megu_dist.engine.base import autocast

        with autocast(self.settings.precision, self.device):
            return self.model(pixel_values=self.preprocess.normalise(pixels)).logits.float()
