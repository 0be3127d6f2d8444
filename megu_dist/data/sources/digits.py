"""scikit-learn's 1,797 handwritten digits, 8×8 gray: inside a dependency, for the quickest tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megu_dist.config.registry import register
from megu_dist.config.schema import SourceSettings
from megu_dist.data.embedded import EmbeddedSource

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEST_ROWS = 360
SPLIT_SEED = 0


@dataclass(kw_only=True)
class DigitsSettings(SourceSettings):
    """Nothing of its own."""


@register("data", "digits", DigitsSettings)
class DigitsSource(EmbeddedSource):
    """scikit-learn's handwritten digits, 8×8 gray: 1,437 train, 360 test; needs no download."""

    def __init__(self, settings: DigitsSettings) -> None:
        super().__init__(settings, "digits", f"split-{SPLIT_SEED}")

    def names(self) -> Sequence[str]:
        return CLASSES

    def build(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits = load_digits()
        images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
        labels = digits.target.astype(np.int64)
        train, test = train_test_split(
            np.arange(len(labels)), test_size=TEST_ROWS, stratify=labels, random_state=SPLIT_SEED
        )
        return {"train": (images[train], labels[train]), "test": (images[test], labels[test])}
