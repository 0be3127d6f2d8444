"""What an analysis looks at: the forgotten classes, which others beside them, and which of those are neighbours."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megu_dist.config.schema import AnalyzeSettings
from megu_dist.data.plan import hash_uniform


@dataclass(frozen=True)
class Request:
    """Labels are of ``names`` (fine ones for sub-classes)."""

    names: list[str]
    targets: list[int]
    classes: list[int]  # analysed, ascending; holds the targets
    weights: dict[int, np.ndarray]  # target → (C,) its row of T, where there is one

    def neighbours(self, target: int, count: int, distance: np.ndarray) -> tuple[list[int], str]:
        """The ``count`` nearest analysed classes that stay, by T, else by ``distance`` (C,); and by which."""
        others = np.array([c for c in self.classes if c not in self.targets])
        weight = self.weights.get(target)
        if weight is not None and np.ptp(weight[others]) > 1e-9:
            return others[np.argsort(-weight[others], kind="stable")[:count]].tolist(), "transition"
        return others[np.argsort(distance[others], kind="stable")[:count]].tolist(), "centroids"


def make_request(names: list[str], targets: list[int], folder: Path, settings: AnalyzeSettings, seed: int) -> Request:
    """The classes of ``settings.max_classes``: targets, those that T weighs most, then a seeded choice of the others."""
    weights = read_weights(folder / "transition.json", names, targets)
    others = [c for c in range(len(names)) if c not in targets]
    pull = np.max(list(weights.values()), axis=0) if weights else np.zeros(len(names))
    chance = hash_uniform(seed, 43, np.arange(len(names)))
    others.sort(key=lambda c: (-float(pull[c]), float(chance[c])))
    room = max(settings.max_classes - len(targets), settings.neighbours + 1)
    return Request(names, targets, sorted([*targets, *others[:room]]), weights)


def read_weights(path: Path, names: list[str], targets: list[int]) -> dict[int, np.ndarray]:
    """Rows of T by target, where ``path`` holds them for these very classes."""
    if not path.is_file():
        return {}
    data = json.loads(path.read_text())
    if data.get("fine") or data.get("columns") != names:  # T weighs coarse classes then, not these
        return {}
    rows = dict(zip(data["rows"], data["transition"], strict=True))
    return {t: np.asarray(rows[names[t]], np.float64) for t in targets if names[t] in rows}
