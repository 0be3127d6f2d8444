"""The words of a report: what each metric means, which way is better, and the verdict made from the numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from megu_dist.config.schema import SINGLE
from megu_dist.report.load import RunMetrics, Values

UP, DOWN, ALIKE = "↑", "↓", "≈"
ARROWS = {UP: "higher is better", DOWN: "lower is better", ALIKE: "nearer the retrained model's value is better"}
ABSENT = "–"
COSTLY_DROP = 0.05  # loss of retained accuracy that the verdict points out
FORGET_METRICS = ("acc_forget_train", "acc_forget_test")


@dataclass(frozen=True)
class Metric:
    """How one number is shown."""

    key: str
    title: str
    arrow: str
    meaning: str


MODEL_METRICS = (
    Metric(
        "acc_retain_test", "Accuracy, retained, test", UP, "share right among test images that should still be known"
    ),
    Metric(
        "acc_forget_test", "Accuracy, forgotten, test", ALIKE, "share right among test images of what was forgotten"
    ),
    Metric("acc_retain_train", "Accuracy, retained, training", UP, "share right among retained training images"),
    Metric("acc_forget_train", "Accuracy, forgotten, training", ALIKE, "share right among the forgotten images"),
    Metric(
        "acc_retain_test_masked",
        "Accuracy, retained, test, classes left",
        UP,
        "the same as retained, test, where only classes that are left can be answers",
    ),
    Metric(
        "acc_already_test",
        "Accuracy, forgotten earlier, test",
        DOWN,
        "share right among test images of classes that earlier requests forgot",
    ),
    Metric("acc_already_train", "Accuracy, forgotten earlier, training", DOWN, "the same among training images"),
    Metric(
        "mia",
        "Membership inference (MIA)",
        ALIKE,
        "share of forgotten images that an attack on prediction entropy takes for training images; "
        "compare with the retrained model, not with 0",
    ),
    *(
        Metric(f"mia_{name}_{key}", f"Attack on {name}, {title}", ALIKE, meaning)
        for key, title, meaning in (
            ("auc", "AUC", "how well forgotten training images are told from unseen ones; 0.5: not at all"),
            (
                "tpr",
                "TPR at 1 % FPR",
                "share of forgotten images found when 1 % of unseen ones are mistaken; 0.01: none",
            ),
        )
        for name in ("confidence", "margin", "loss", "entropy")
    ),
    Metric("zrf", "Zero-retrain forgetting (ZRF)", ALIKE, "likeness to a model that never learnt; 1: the same"),
    Metric("probe_forget_acc", "Linear probe, forgotten", ALIKE, "accuracy of a linear classifier on frozen features"),
    Metric("relearn_epochs", "Relearn epochs", ALIKE, "epochs on forgotten images until they are known again"),
    Metric("relearn_reached", "Relearned", "", "1 where they were known again before evaluate.relearn_epochs"),
    Metric("loss_retain_test", "Loss, retained, test", DOWN, "mean cross-entropy on retained test images"),
    Metric("loss_forget_test", "Loss, forgotten, test", ALIKE, "mean cross-entropy on forgotten test images"),
    Metric("loss_already_test", "Loss, forgotten earlier, test", ALIKE, "mean cross-entropy on the same test images"),
    Metric("loss_already_train", "Loss, forgotten earlier, training", ALIKE, "the same on training images"),
    Metric("loss_retain_train", "Loss, retained, training", DOWN, "mean cross-entropy on retained training images"),
    Metric("loss_forget_train", "Loss, forgotten, training", ALIKE, "mean cross-entropy on the forgotten images"),
)
DISTANCES = (
    Metric(
        "tow",
        "Tug of war (ToW)",
        UP,
        "(1 − |Δ accuracy forgotten|)·(1 − |Δ retained|)·(1 − |Δ test|) against the retrained model; 1 = retrained",
    ),
    Metric("tow_mia", "ToW with MIA", UP, "the same with membership inference in place of forgotten accuracy"),
    Metric("avg_gap", "Average gap", DOWN, "mean |difference| of forgotten, retained, test accuracy and MIA"),
    Metric("kl_forget", "KL on forgotten images", DOWN, "mean KL(p retrained ‖ p unlearned) on forgotten images"),
    Metric("js_forget", "JS on forgotten images", DOWN, "Jensen–Shannon divergence on the same images, at most 0.693"),
    Metric(
        "seconds_ratio", "Seconds / retraining", DOWN, "perturb + finetune seconds over the retrained model's training"
    ),
    Metric("activation_distance", "Activation distance", DOWN, "mean L2 distance of both models' probabilities"),
)


def number(value: float | None, digits: int = 3) -> str:
    """A metric as printed; a dash where it was not measured."""
    return ABSENT if value is None else f"{value:.{digits}f}"


def model_metrics(metrics: RunMetrics) -> list[Metric]:
    """Metrics measured on at least one model, the well-known first."""
    present = {key for values in metrics.models.values() for key, value in values.items() if value is not None}
    always = {f"acc_{part}_{split}" for part in ("retain", "forget") for split in ("train", "test")} | {"mia"}
    chosen = [_directed(metric, metrics) for metric in MODEL_METRICS if metric.key in present | always]
    return chosen + _unknown(present, MODEL_METRICS)


def distances(metrics: RunMetrics) -> list[Metric]:
    """Distances to the retrained model that were measured."""
    present = {key for key, value in metrics.versus_retrained.items() if value is not None}
    return [metric for metric in DISTANCES if metric.key in present] + _unknown(present, DISTANCES)


def _directed(metric: Metric, metrics: RunMetrics) -> Metric:
    """In the class scenario a retrained model scores 0 on forgotten images: lower is better."""
    if metrics.scenario == "class" and metric.key in FORGET_METRICS:
        return Metric(metric.key, metric.title, DOWN, metric.meaning)
    return metric


def _unknown(present: Iterable[str], known: Iterable[Metric]) -> list[Metric]:
    names = {metric.key for metric in known}
    return [Metric(key, key.replace("_", " "), "", "") for key in sorted(set(present) - names)]


def forgotten_name(metrics: RunMetrics, limit: int = 6) -> str:
    """What was forgotten: class names, or how many images."""
    names = metrics.forget_classes
    if metrics.scenario in ("class", "subclass") and names:
        return " + ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
    return f"{metrics.forget_count:,} training image" + ("" if metrics.forget_count == 1 else "s")


def did_not_forget(metrics: RunMetrics) -> bool:
    """Class scenario: the unlearned model keeps more than half of the accuracy on what it should have forgotten."""
    if metrics.scenario != "class":
        return False
    key = _forget_key(metrics)
    before, after = metrics.value("original", key), metrics.value("unlearned", key)
    if not before or after is None:
        return False
    return not after <= before / 2  # also where the value is not a number


def _forget_key(metrics: RunMetrics) -> str:
    test = [metrics.value(model, "acc_forget_test") for model in ("original", "unlearned")]
    return "acc_forget_train" if None in test else "acc_forget_test"


def _opening(metrics: RunMetrics) -> str:
    name, key = forgotten_name(metrics), _forget_key(metrics)
    before, after = metrics.value("original", key), metrics.value("unlearned", key)
    if metrics.scenario != "class" or before is None or after is None:
        return f"Asked to forget {name}"
    if did_not_forget(metrics):
        return f"Did NOT forget {name}"
    gone = max(0.1 * before, (metrics.value("retrained", key) or 0.0) + 0.05)
    return f"Forgot {name}" if after <= gone else f"Forgot {name} only in part"


def _change(metrics: RunMetrics, key: str) -> str:
    text = f"{number(metrics.value('original', key))} → {number(metrics.value('unlearned', key))}"
    retrained = metrics.value("retrained", key)
    return text if retrained is None else f"{text} (retrained {number(retrained)})"


def verdict(metrics: RunMetrics) -> str:
    """One sentence from the numbers; a second one where retained accuracy paid for it."""
    key = _forget_key(metrics)
    images = "test" if key == "acc_forget_test" else "training"
    parts = [f"accuracy on forgotten {images} images {_change(metrics, key)}"]
    parts.append(f"retained test accuracy {_change(metrics, 'acc_retain_test')}")
    if metrics.scenario in SINGLE:
        parts.append(f"membership inference {_change(metrics, 'mia')}")
    sentence = f"{_opening(metrics)}: {'; '.join(parts)}."
    before, after = (metrics.value(model, "acc_retain_test") for model in ("original", "unlearned"))
    if before is not None and after is not None and not before - after <= COSTLY_DROP:
        sentence += f" Retained accuracy paid for it: {after - before:+.3f}."
    return sentence


def compared_values(metrics: RunMetrics) -> Values:
    """The numbers of one run's row in a comparison."""
    unlearned = metrics.models["unlearned"]
    return {
        "acc_forget_test": unlearned.get("acc_forget_test"),
        "acc_retain_test": unlearned.get("acc_retain_test"),
        "mia": unlearned.get("mia"),
        "kl_forget": metrics.versus_retrained.get("kl_forget"),
        "tow": metrics.versus_retrained.get("tow"),
        "seconds": metrics.unlearning_seconds,
    }
