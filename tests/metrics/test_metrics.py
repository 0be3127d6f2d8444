"""Metrics in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest

from megu_dist.metrics.base import PARTS, Parts, Predictions, compute
from megu_dist.report.wording import DISTANCES, MODEL_METRICS

SIZES = {
    "retain_train": 400, "forget_train": 300, "retain_test": 200, "forget_test": 50, "already_train": 60, "already_test": 30,
}  # fmt: skip


def predictions(probs: np.ndarray, label: np.ndarray) -> Predictions:
    chosen = probs[np.arange(len(label)), label]
    entropy = -(probs * np.log(np.maximum(probs, 1e-12))).sum(1)
    return Predictions(label, probs.argmax(1), -np.log(np.maximum(chosen, 1e-12)), entropy, probs)


def random_parts(seed: int = 0, parts: tuple[str, ...] = PARTS, classes: int = 4) -> Parts:
    rng = np.random.default_rng(seed)
    return {
        name: predictions(
            rng.dirichlet(np.ones(classes), SIZES[name]).astype(np.float32), rng.integers(0, classes, SIZES[name])
        )
        for name in parts
    }


def constant(distribution: list[float], parts: tuple[str, ...] = PARTS) -> Parts:
    """Every image gets the same output; all labels are 0."""
    row = np.array(distribution)
    return {name: predictions(np.tile(row, (SIZES[name], 1)), np.zeros(SIZES[name], int)) for name in parts}


def test_a_perfect_result_is_the_retrained_model() -> None:
    parts = random_parts()
    models, versus = compute({"original": random_parts(1), "unlearned": parts, "retrained": parts}, 0)
    assert models["unlearned"] == models["retrained"] != models["original"]
    assert versus is not None
    assert {k: versus[k] for k in ("tow", "tow_mia")} == {"tow": 1.0, "tow_mia": 1.0}
    for name in ("avg_gap", "kl_forget", "activation_distance"):
        assert versus[name] == pytest.approx(0, abs=1e-9)


def test_the_report_has_a_title_for_every_number() -> None:
    """Labels of retained and forgotten images differ, as where classes are forgotten."""
    parts = random_parts(classes=3)
    for name, part in parts.items():
        part.label[:] = 2 if name.startswith("forget") else part.label % 2
    models, versus = compute({"original": parts, "unlearned": parts, "retrained": parts}, 0)
    assert "acc_retain_test_masked" in models["original"]
    assert set(models["original"]) <= {metric.key for metric in MODEL_METRICS}
    assert versus is not None
    assert set(versus) <= {metric.key for metric in DISTANCES}


def test_without_a_retrained_model_nothing_is_compared() -> None:
    assert compute({"original": random_parts(), "unlearned": random_parts(1)}, 0)[1] is None


def test_accuracy_and_loss_by_hand() -> None:
    probs = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4], [0.9, 0.05, 0.05]])
    part = predictions(probs, np.array([0, 2, 2, 1]))
    found = compute({"original": {"forget_test": part}}, 0)[0]["original"]
    assert found["acc_forget_test"] == 0.5
    assert found["loss_forget_test"] == pytest.approx(-np.log([0.7, 0.1, 0.4, 0.05]).mean())
    assert set(found) == {"acc_forget_test", "loss_forget_test"}  # no images, no number


def test_masked_accuracy_leaves_forgotten_classes_out_of_the_choice() -> None:
    """Class 2 is forgotten: of three retained images, one is right as it is, another once class 2 cannot be chosen."""
    kept = predictions(np.array([[0.7, 0.2, 0.1], [0.1, 0.4, 0.5], [0.1, 0.4, 0.5]]), np.array([0, 1, 0]))
    gone = predictions(np.array([[0.1, 0.1, 0.8]]), np.array([2]))
    found = compute({"original": {"retain_test": kept, "forget_test": gone}}, 0)[0]["original"]
    assert found["acc_retain_test"] == pytest.approx(1 / 3)
    assert found["acc_retain_test_masked"] == pytest.approx(2 / 3)
    mixed = predictions(np.array([[0.1, 0.1, 0.8]]), np.array([1]))  # an image of a class that stays
    assert (
        "acc_retain_test_masked"
        not in compute({"original": {"retain_test": kept, "forget_test": mixed}}, 0)[0]["original"]
    )


def test_divergence_and_distance_by_hand() -> None:
    ours, reference = constant([0.5, 0.25, 0.25]), constant([0.8, 0.1, 0.1])
    _, versus = compute({"unlearned": ours, "retrained": reference}, 0)
    assert versus is not None
    assert versus["kl_forget"] == pytest.approx(0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.1 / 0.25), rel=1e-6)
    assert versus["activation_distance"] == pytest.approx(math.sqrt(0.3**2 + 2 * 0.15**2), rel=1e-6)


def test_divergence_is_of_the_retrained_from_the_unlearned() -> None:
    _, one = compute({"unlearned": constant([0.9, 0.1]), "retrained": constant([0.5, 0.5])}, 0)
    _, other = compute({"unlearned": constant([0.5, 0.5]), "retrained": constant([0.9, 0.1])}, 0)
    assert one is not None
    assert other is not None
    assert one["kl_forget"] == pytest.approx(0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1))
    assert other["kl_forget"] == pytest.approx(0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5))


def test_without_forgotten_test_images_the_training_images_serve() -> None:
    parts = ("retain_train", "forget_train", "retain_test")
    models, versus = compute({"unlearned": constant([0.5, 0.5], parts), "retrained": constant([0.9, 0.1], parts)}, 0)
    assert "acc_forget_test" not in models["unlearned"]
    assert versus is not None
    assert versus["kl_forget"] == pytest.approx(0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5))


def accurate(part: str, accuracy: float) -> Predictions:
    size = SIZES[part]
    right = np.arange(size) < accuracy * size
    return predictions(np.where(right[:, None], [0.9, 0.1], [0.1, 0.9]), np.zeros(size, int))


def test_tug_of_war_by_hand() -> None:
    ours = {part: accurate(part, value) for part, value in zip(PARTS[:4], (0.9, 0.2, 0.8, 0.1), strict=True)}
    reference = {part: accurate(part, value) for part, value in zip(PARTS[:4], (0.95, 0.0, 0.85, 0.0), strict=True)}
    models, versus = compute({"unlearned": ours, "retrained": reference}, 0)
    assert versus is not None
    assert versus["tow"] == pytest.approx(0.8 * 0.95 * 0.95)
    mia = abs(models["unlearned"]["mia"] - models["retrained"]["mia"])
    assert versus["tow_mia"] == pytest.approx((1 - mia) * 0.95 * 0.95)
    assert versus["avg_gap"] == pytest.approx((0.2 + 0.05 + 0.05 + mia) / 4)


def with_entropy(part: str, entropy: np.ndarray) -> Predictions:
    base = constant([0.5, 0.5])[part]
    return Predictions(base.label, base.prediction, base.loss, entropy[: len(base)], base.probs)


@pytest.mark.parametrize(("forgotten_mean", "expected"), [(0.1, 1.0), (1.5, 0.0)])
def test_membership_of_well_separated_entropies(forgotten_mean: float, expected: float) -> None:
    rng = np.random.default_rng(0)
    parts = {
        "retain_train": with_entropy("retain_train", rng.normal(0.1, 0.02, 400)),
        "retain_test": with_entropy("retain_test", rng.normal(1.5, 0.02, 400)),
        "forget_train": with_entropy("forget_train", rng.normal(forgotten_mean, 0.02, 400)),
    }
    assert compute({"original": parts}, 0)[0]["original"]["mia"] == expected


def test_membership_is_a_coin_toss_when_nothing_tells_them_apart() -> None:
    values = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        parts = {p: with_entropy(p, rng.random(400)) for p in ("retain_train", "retain_test", "forget_train")}
        values.append(compute({"original": parts}, seed)[0]["original"]["mia"])
    assert abs(np.mean(values) - 0.5) < 0.2


def test_membership_needs_all_three_parts() -> None:
    for missing in ("retain_train", "retain_test", "forget_train"):
        parts = {name: part for name, part in random_parts().items() if name != missing}
        assert "mia" not in compute({"original": parts}, 0)[0]["original"]


def test_the_seed_of_the_attack_counts() -> None:
    parts = random_parts()
    first = compute({"original": parts}, 0)[0]
    assert compute({"original": parts}, 0)[0] == first
