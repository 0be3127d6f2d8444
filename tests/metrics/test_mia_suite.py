from __future__ import annotations

import numpy as np
import pytest

from megu_dist.metrics.base import Predictions
from megu_dist.metrics.mia_suite import FEWEST, mia_suite


def predictions(probs: np.ndarray, label: np.ndarray) -> Predictions:
    own = probs[np.arange(len(label)), label]
    entropy = -(probs * np.log(probs)).sum(1)
    return Predictions(label, probs.argmax(1), -np.log(own), entropy, probs)


def draw(count: int, sharpness: float, seed: int) -> Predictions:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, 5))
    label = rng.integers(0, 5, count)
    logits[np.arange(count), label] += sharpness
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return predictions(probs, label)


def test_images_from_the_same_distribution_cannot_be_told() -> None:
    found = mia_suite({"forget_train": draw(2000, 2.0, 1), "forget_test": draw(2000, 2.0, 2)}, 0)
    assert len(found) == 8
    error = 4 * np.sqrt(1 / (6 * 2000))  # four standard errors of the AUC of a random attack
    for name, value in found.items():
        assert value == pytest.approx(0.5, abs=error) if name.endswith("auc") else value < 0.03


def test_memorised_images_are_told() -> None:
    found = mia_suite({"forget_train": draw(500, 30.0, 1), "forget_test": draw(500, -5.0, 2)}, 0)
    assert found["mia_loss_auc"] == pytest.approx(1.0)
    assert found["mia_margin_tpr"] == pytest.approx(1.0)


def test_the_attack_learns_the_direction() -> None:
    """Images forgotten too much, with a larger loss than unseen ones, are told as well."""
    assert mia_suite({"forget_train": draw(500, -5.0, 1), "forget_test": draw(500, 3.0, 2)}, 0)["mia_loss_auc"] > 0.9


def test_unseen_images_are_of_the_same_kind_where_there_are_any() -> None:
    forgotten, like, unlike = draw(500, 0.0, 1), draw(500, 0.0, 2), draw(500, 20.0, 3)
    both = mia_suite({"forget_train": forgotten, "forget_test": like, "retain_test": unlike}, 0)
    assert both["mia_loss_auc"] < 0.6
    assert mia_suite({"forget_train": forgotten, "retain_test": unlike}, 0)["mia_loss_auc"] > 0.9


def test_too_few_images_give_no_number() -> None:
    assert mia_suite({"forget_train": draw(FEWEST - 1, 0.0, 1), "forget_test": draw(500, 0.0, 2)}, 0) == {}
