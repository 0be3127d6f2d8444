"""How good an unlearned model is, judged by what a user has: validation images, and no retrained model."""

from __future__ import annotations

Models = dict[str, dict[str, float]]


def gaps(models: Models, scenario: str) -> tuple[float, float]:
    """(forget gap, retain gap), both in [0, 1], 0 best.

    Retain gap: the loss of accuracy on validation images of what is retained; where whole classes are forgotten, against
    the original model's accuracy among the retained classes, because a model without a class takes nothing for it.
    Forget gap: 1 − (1 − knowledge left) · (1 − 2·|AUC − ½|). Knowledge left is, for a forgotten class, the share of its
    images that are still recognised (a model that never saw the class knows none); in the other scenarios, by how much
    forget images are recognised more, or less, often than images of the same kind that were never trained on. AUC is
    that of an attack that tells these two apart by their loss.
    """
    before, after = models["original"], models["unlearned"]
    lost = max(0.0, before.get("acc_retain_test_masked", before["acc_retain_test"]) - after["acc_retain_test"])
    unseen = after.get("acc_forget_test", after["acc_retain_test"])
    left = max(unseen, after["acc_forget_train"]) if scenario == "class" else abs(after["acc_forget_train"] - unseen)
    auc = after.get("mia_loss_auc", 0.5)
    return 1 - (1 - left) * (1 - 2 * abs(auc - 0.5)), lost


def objective(models: Models, scenario: str) -> float:
    """(1 − forget gap) · (1 − retain gap), in [0, 1]: what searches maximise."""
    forget, retain = gaps(models, scenario)
    return (1 - retain) * (1 - forget)
