"""The model actor of the perturb stage: labels and noise for a block of forget images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from megu_dist.config.schema import PerturbSettings
from megu_dist.data.perturbed import make_table
from megu_dist.data.stream import in_this_process
from megu_dist.oracle.transition import Transition
from megu_dist.perturb.frozen import Frozen
from megu_dist.perturb.labels import draw_labels, label_distribution, sharpened
from megu_dist.perturb.noise import fragment_align, quantise
from megu_dist.perturb.probe import Lesson, Probe, features_at

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
        keep: bool = False,
        probe: Probe | Lesson | None = None,
    ) -> None:
        self.frozen = Frozen(model_folder, settings, actors)
        if isinstance(probe, Lesson):
            with in_this_process():
                probe = probe.learn(self.frozen, 1)
        self.probe = probe
        self.transition, self.forgotten, self.settings, self.seed = transition, forgotten, settings, seed
        # A probe of a single class is none, and the model alone would keep nearly every label.
        self.fine, self.keep, self.out = fine, keep and probe is not None, Path(out)

    def __call__(self, block: dict[str, np.ndarray]) -> pa.Table:
        """{row, id, label, image, fine (for sub-classes)} → file in ``out``; returns the number of rows."""
        size = self.settings.batch_size
        count = len(block["row"])
        parts = [self._perturb({k: v[s : s + size] for k, v in block.items()}) for s in range(0, count, size)]
        arrays = dict(block) | {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
        table = make_table(arrays, self.frozen.preprocess.shape, self.settings.epsilon)
        name = f"part-{int(block['row'].min()):010d}.parquet"
        pq.write_table(table, self.out / f".{name}", row_group_size=256, compression="zstd")
        (self.out / f".{name}").rename(self.out / name)
        return pa.table({"rows": [count]})

    def _perturb(self, block: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        s = self.settings
        pixels = self.frozen.pixels(block["image"])
        labels = np.asarray(block["label"])
        log_probs, unseen = self._log_probs(pixels)
        rows_of_t = self.transition.rows_for(np.asarray(block["fine"]) if self.fine else labels)
        own = None if self.fine and not self.keep else labels
        keep = np.exp(unseen[np.arange(len(labels)), labels]) if self.keep else None
        if keep is not None and self.fine:  # that of single images is halfway to the model, which is sure enough
            keep = sharpened(keep, s.kappa)
        q = label_distribution(log_probs, rows_of_t, own, self.forgotten, s.kappa, keep)
        drawn = draw_labels(q, list(block["id"]), self.seed, s.draws, s.label_policy)
        made = {"perturbing_label": drawn}
        if s.noise in ("both", "positive"):
            made["noise_pos"] = np.stack([self._noise(pixels, drawn[:, d], True) for d in range(s.draws)], 1)
        if s.noise in ("both", "negative"):
            made["noise_neg"] = self._noise(pixels, labels, False)
        return made

    def _log_probs(self, pixels: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """log p(j | x), (N, C) float64: the model's own, or halfway between that and the probe's; and an unseen image's.

        The latter is normalised. Of a sub-class it is the probe's alone: θ_o was taught the labels of all of its images,
        while of single ones it has seen thousands of the kind.
        """
        import torch

        def own(logits: Tensor) -> np.ndarray:
            found: np.ndarray = logits.log_softmax(1).double().cpu().numpy()
            return found

        with torch.no_grad():
            if self.probe is None:
                log_probs = own(self.frozen.logits(pixels))
                return log_probs, log_probs
            with features_at(self.frozen.model, self.settings.probe_depth) as features:
                log_probs = own(self.frozen.logits(pixels))
            probed = self.probe.log_probs(features().float().cpu().numpy(), log_probs.shape[1])
        halfway = (log_probs + probed) / 2
        return halfway, probed if self.fine else halfway - np.logaddexp.reduce(halfway, 1)[:, None]

    def _noise(self, pixels: Tensor, target: np.ndarray, towards: bool) -> np.ndarray:
        import torch

        goal = torch.from_numpy(np.array(target)).to(self.frozen.device)
        noise = fragment_align(self.frozen.logits, pixels, goal, towards, self.settings.epsilon, self.settings.steps)
        return quantise(noise, self.settings.epsilon).cpu().numpy()
