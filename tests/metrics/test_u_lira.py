"""U-LiRA on values whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from megu_dist.metrics.base import Predictions
from megu_dist.metrics.u_lira import FEW, sureness, u_lira


def draws(shift: float, shadows: int, images: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """φ of both sides: images differ in how hard they are, models by noise, and the unlearned ones by ``shift``."""
    rng = np.random.default_rng(seed)
    hardness = rng.normal(0, 3, images)
    return rng.normal(hardness + shift, 1, (shadows, images)), rng.normal(hardness, 1, (shadows, images))


@pytest.mark.parametrize("shadows", [4, 16, FEW + 2])
def test_what_cannot_be_told_apart_scores_as_chance(shadows: int) -> None:
    found = u_lira(*draws(0.0, shadows))
    error = 3 / np.sqrt(shadows * 400)  # a little over three standard errors of an AUC under chance
    assert found["u_lira_auc"] == pytest.approx(0.5, abs=error)
    assert found["u_lira_tpr"] < 0.03


@pytest.mark.parametrize("shift", [-2.0, 2.0])
def test_known_shift_gives_the_attack_of_two_normals(shift: float) -> None:
    from scipy.stats import norm

    found = u_lira(*draws(shift, 40))
    assert found["u_lira_auc"] == pytest.approx(norm.cdf(abs(shift) / np.sqrt(2)), abs=0.02)
    assert found["u_lira_tpr"] == pytest.approx(norm.cdf(abs(shift) - norm.ppf(0.99)), abs=0.05)


def test_an_attack_per_image_beats_one_threshold_for_all() -> None:
    from sklearn.metrics import roc_auc_score

    unlearned, retrained = draws(2.0, 20)
    plain = roc_auc_score([1] * unlearned.size + [0] * retrained.size, np.concatenate([unlearned, retrained], None))
    assert u_lira(unlearned, retrained)["u_lira_auc"] > plain + 0.15


def test_too_few_shadows_give_no_number() -> None:
    assert u_lira(*draws(1.0, 2)) == {}
    with pytest.raises(ValueError, match="do not pair up"):
        u_lira(np.zeros((4, 3)), np.zeros((4, 2)))


def test_models_that_never_vary_are_no_division_by_zero() -> None:
    same = np.zeros((4, 30))
    found = u_lira(same, same)
    assert found["u_lira_auc"] == 0.5


def test_sureness_is_the_logit_of_the_labels_probability() -> None:
    probs = np.array([[0.9, 0.1], [0.25, 0.75], [0.0, 1.0]], np.float32)
    empty = np.zeros(3)
    found = sureness(Predictions(np.array([0, 0, 0]), empty, empty, empty, probs))
    assert found[:2] == pytest.approx([np.log(9), np.log(1 / 3)], abs=1e-5)
    assert np.isfinite(found).all()
