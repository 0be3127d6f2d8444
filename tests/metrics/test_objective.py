"""What a search maximises, in closed form."""

from __future__ import annotations

import pytest

from megu_dist.metrics.objective import gaps, objective

ORIGINAL = {"acc_retain_test": 0.9, "acc_forget_train": 1.0, "acc_forget_test": 0.9}


@pytest.mark.parametrize(
    ("after", "scenario", "expected"),
    [
        ({"acc_retain_test": 0.9, "acc_forget_train": 0.0, "acc_forget_test": 0.0, "mia_loss_auc": 0.5}, "class", 1.0),
        (
            {"acc_retain_test": 0.95, "acc_forget_train": 0.0, "acc_forget_test": 0.0},
            "class",
            1.0,
        ),  # better is not worse
        ({"acc_retain_test": 0.8, "acc_forget_train": 0.0, "acc_forget_test": 0.0}, "class", 0.9),
        ({"acc_retain_test": 0.9, "acc_forget_train": 0.0, "acc_forget_test": 0.2}, "class", 0.8),
        ({"acc_retain_test": 0.9, "acc_forget_train": 0.9, "mia_loss_auc": 0.5}, "random", 1.0),
        ({"acc_retain_test": 0.9, "acc_forget_train": 0.5, "mia_loss_auc": 0.5}, "random", 0.6),  # forgotten too much
        ({"acc_retain_test": 0.9, "acc_forget_train": 0.9, "mia_loss_auc": 0.7}, "random", 0.6),
        ({"acc_retain_test": 0.9, "acc_forget_train": 0.6, "acc_forget_test": 0.6}, "subclass", 1.0),
    ],
)
def test_objective(after: dict[str, float], scenario: str, expected: float) -> None:
    assert objective({"original": ORIGINAL, "unlearned": after}, scenario) == pytest.approx(expected)


def test_the_loss_is_against_the_original_among_retained_classes() -> None:
    """Where masking tells that .95 could be had, .9 is a loss, though the original had no more."""
    masked = ORIGINAL | {"acc_retain_test_masked": 0.95}
    after = {"acc_retain_test": 0.9, "acc_forget_train": 0.0, "acc_forget_test": 0.0}
    forget, retain = gaps({"original": masked, "unlearned": after}, "class")
    assert (forget, retain) == (0, pytest.approx(0.05))
    assert objective({"original": masked, "unlearned": after}, "class") == pytest.approx(0.95)
