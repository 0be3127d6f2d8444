"""Counts behind the figures: accuracy per class, predicted classes of the forgotten images, heaviest columns of T."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megu_dist.report.load import MODELS, Predictions, RunResults

MANY_CLASSES, SHOWN_CLASSES = 30, 30  # beyond so many classes, only those that changed most are drawn
SHOWN_DESTINATIONS = 12


@dataclass(frozen=True)
class PerClass:
    """Test accuracy of each model per class shown."""

    names: list[str]
    marked: list[bool]  # forgotten
    accuracy: dict[str, np.ndarray]  # model → value per class, NaN where the class has no test image
    total: int  # classes in the label space


@dataclass(frozen=True)
class Destinations:
    """Share of forgotten images predicted as each class shown."""

    names: list[str]
    marked: list[bool]
    share: dict[str, np.ndarray]
    images: int
    part: str  # test | training


def per_class(results: RunResults) -> PerClass | None:
    """Accuracy per class on test images; forgotten sub-classes get a bar group of their own. None: no test images."""
    metrics = results.metrics
    classes, apart = len(metrics.class_names), metrics.scenario == "subclass"
    accuracy: dict[str, np.ndarray] = {}
    for model in (name for name in MODELS if name in results.predictions):
        rows = results.predictions[model].select("retain_test", "forget_test", "already_test")
        group = np.where(rows.part == "forget_test", classes, rows.label) if apart else rows.label
        hits = np.bincount(group, weights=rows.prediction == rows.label, minlength=classes + 1)
        totals = np.bincount(group, minlength=classes + 1)
        accuracy[model] = np.divide(hits, totals, out=np.full(len(totals), np.nan), where=totals > 0)
    tested = np.isfinite(accuracy["original"])
    if not tested.any():
        return None
    forgotten = metrics.forgotten | ({classes} if apart else set())
    change = np.nan_to_num(np.abs(accuracy["unlearned"] - accuracy["original"]), nan=-1.0)
    shown = set(np.flatnonzero(tested).tolist())
    if len(shown) > MANY_CLASSES:
        shown = set(np.argsort(-change, kind="stable")[:SHOWN_CLASSES].tolist()) | (forgotten & shown)
    order = sorted(shown)
    names = [*metrics.class_names, " + ".join(metrics.forget_classes) or "forgotten images"]
    return PerClass(
        names=[names[index] for index in order],
        marked=[index in forgotten for index in order],
        accuracy={model: values[order] for model, values in accuracy.items()},
        total=classes,
    )


def forgotten_predictions(results: RunResults) -> Destinations | None:
    """Predicted classes of forgotten test images (training images where there are none in the test set)."""
    metrics = results.metrics
    part = "forget_test" if len(results.predictions["unlearned"].select("forget_test")) else "forget_train"
    rows = {
        model: results.predictions[model].select(part)
        for model in ("unlearned", "retrained")
        if model in results.predictions
    }
    rows = {model: selected for model, selected in rows.items() if len(selected)}
    if "unlearned" not in rows:
        return None
    share: dict[str, np.ndarray] = {
        model: _shares(selected, len(metrics.class_names)) for model, selected in rows.items()
    }
    weight = np.mean(list(share.values()), axis=0)
    order = [int(index) for index in np.argsort(-weight, kind="stable")[:SHOWN_DESTINATIONS] if weight[index] > 0]
    order += [index for index in sorted(metrics.forgotten) if index not in order][:3]
    names = [metrics.class_names[index] for index in order]
    marked = [index in metrics.forgotten for index in order]
    rest = len(metrics.class_names) - len(order)
    if rest:
        names.append(f"other ({rest})")
        marked.append(False)
        share = {model: np.append(values[order], max(0.0, 1 - values[order].sum())) for model, values in share.items()}
    else:
        share = {model: values[order] for model, values in share.items()}
    return Destinations(names, marked, share, len(rows["unlearned"]), "test" if part == "forget_test" else "training")


def _shares(rows: Predictions, classes: int) -> np.ndarray:
    return np.bincount(rows.prediction, minlength=classes) / len(rows)
