"""The report's figures: one function each, from loaded results to a matplotlib Figure. They only draw."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from megu_dist.report import style
from megu_dist.report.load import RunResults, Transition
from megu_dist.report.samples import PerturbedSample
from megu_dist.report.tables import Destinations, PerClass

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_ROWS, MANY_COLUMNS = 30, 25  # rows and columns of T that stay readable
NEAREST = 8  # classes shown of each row where there are more columns
STAGES = ("split", "oracle", "perturb", "finetune", "evaluate")


def per_class_accuracy(data: PerClass) -> Figure:
    """Test accuracy per class, a bar per model; forgotten classes shaded, in bold, with their values."""
    count, models = len(data.names), list(data.accuracy)
    names = _marked_names(data.names, data.marked)
    slanted = count <= 15
    below = 0.085 * max(map(len, names), default=0) * (0.75 if slanted else 1.0)
    figure = style.new_figure(max(9.0, 1.2 + 0.33 * count), 3.8 + below)
    axes = figure.subplots()
    width = 0.82 / len(models)
    for index, model in enumerate(models):
        places = np.arange(count) + (index - (len(models) - 1) / 2) * width
        axes.bar(places, data.accuracy[model], width, color=style.COLOURS[model], label=model)
        for place, value, marked in zip(places, data.accuracy[model], data.marked, strict=True):
            if marked and np.isfinite(value):
                axes.text(place, value + 0.015, f"{value:.3f}", rotation=90, ha="center", va="bottom", fontsize=7.5)
    for place in np.flatnonzero(data.marked):
        axes.axvspan(place - 0.5, place + 0.5, color=style.MARK_COLOUR, zorder=0, linewidth=0)
    axes.set_xticks(range(count), names, rotation=45 if slanted else 90, ha="right" if slanted else "center")
    if slanted:
        for text in axes.get_xticklabels():
            text.set_rotation_mode("anchor")
    _embolden(axes.get_xticklabels(), data.marked)
    axes.set(xlim=(-0.6, count - 0.4), ylim=(0, 1.17), ylabel="test accuracy")
    axes.set_yticks(np.arange(0, 1.01, 0.2))
    axes.set_title("Test accuracy per class")
    axes.grid(axis="y")
    figure.legend(loc="outside upper right", ncols=len(models))
    return figure


def destinations(data: Destinations) -> Figure:
    """Share of the forgotten images that goes to each class, for the unlearned beside the retrained model."""
    count, models = len(data.names), list(data.share)
    figure = style.new_figure(9.0, 1.5 + 0.42 * count)
    axes = figure.subplots()
    height = 0.8 / len(models)
    for index, model in enumerate(models):
        places = np.arange(count) + (index - (len(models) - 1) / 2) * height
        bars = axes.barh(places, data.share[model], height, color=style.COLOURS[model], label=model)
        axes.bar_label(bars, fmt="%.3f", padding=3, fontsize=8)
    names = _marked_names(data.names, data.marked)
    for place in np.flatnonzero(data.marked):
        axes.axhspan(place - 0.5, place + 0.5, color=style.MARK_COLOUR, zorder=0, linewidth=0)
    axes.set_yticks(range(count), names)
    _embolden(axes.get_yticklabels(), data.marked)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1 * max(float(share.max()) for share in data.share.values()) or 1.0)
    axes.set_xlabel(f"share of {data.images:,} forgotten {data.part} images")
    axes.set_title("What forgotten images are predicted as")
    axes.grid(axis="x")
    figure.legend(loc="outside upper right", ncols=len(models))
    return figure


def transition_heatmap(transition: Transition) -> Figure:
    """T with its values; where there are many classes, the nearest of each row."""
    if len(transition.columns) > MANY_COLUMNS:
        return _nearest_classes(transition)
    names, rows, matrix = transition.columns, transition.rows[:MAX_ROWS], transition.matrix[:MAX_ROWS]
    below = 0.065 * max(map(len, names))
    figure = style.new_figure(max(6.0, 3.4 + 0.44 * len(names)), 1.0 + below + 0.42 * len(rows))
    axes = _shaded(figure, matrix, f"T: oracle's weight per neighbour{_of_all(transition)}", rows)
    for row, column in np.ndindex(*matrix.shape):
        _write(axes, row, column, _share(float(matrix[row, column])), matrix, 8)
    axes.set_xticks(range(len(names)), style.labels(names), rotation=45, ha="right")
    for text in axes.get_xticklabels():
        text.set_rotation_mode("anchor")
    return figure


def _nearest_classes(transition: Transition) -> Figure:
    """A row's heaviest classes, each a cell with its name: a thousand columns cannot be told apart."""
    rows, matrix = transition.rows[:MAX_ROWS], transition.matrix[:MAX_ROWS]
    order = np.argsort(-matrix, axis=1, kind="stable")[:, :NEAREST]
    weights = np.take_along_axis(matrix, order, axis=1)
    names = style.labels([transition.columns[j] for j in order.ravel()], limit=26, width=14)
    figure = style.new_figure(3.2 + 1.25 * (NEAREST + 1), 1.1 + 0.55 * len(rows))
    shades = np.hstack([weights, np.full((len(rows), 1), np.nan)])  # the sum of all others is no neighbour
    axes = _shaded(figure, shades, f"T: nearest classes and oracle's weight{_of_all(transition)}", rows)
    for (row, column), name in zip(np.ndindex(*order.shape), names, strict=True):
        weight = float(weights[row, column])
        _write(axes, row, column, f"{name}\n{_share(weight)}" if weight else "", shades, 7)
    for row, rest in enumerate(1 - weights.sum(axis=1)):
        _write(axes, row, NEAREST, _share(max(0.0, float(rest))), shades, 8)
    others = f"all other\n{len(transition.columns) - NEAREST:,}"
    axes.set_xticks(range(NEAREST + 1), [*(f"{place}." for place in range(1, NEAREST + 1)), others])
    axes.xaxis.tick_top()
    return figure


def _shaded(figure: Figure, matrix: np.ndarray, title: str, rows: Sequence[str]) -> Axes:
    axes = figure.subplots()
    image = axes.imshow(matrix, cmap="Blues", vmin=0.0, vmax=float(np.nanmax(matrix)) or 1.0, aspect="auto")
    axes.set_yticks(range(len(rows)), style.labels(rows))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title)
    axes.set_ylabel("forget")
    figure.colorbar(image, ax=axes, fraction=0.05, aspect=12, pad=0.02)
    return axes


def _write(axes: Axes, row: int, column: int, text: str, shades: np.ndarray, size: float) -> None:
    dark = shades[row, column] > 0.6 * np.nanmax(shades)
    ink = "white" if dark else "#222222"
    axes.text(column, row, text, ha="center", va="center", fontsize=size, color=ink, linespacing=1.05)


def _of_all(transition: Transition) -> str:
    return f", {MAX_ROWS} of {len(transition.rows)} rows" if len(transition.rows) > MAX_ROWS else ""


def perturbed_strip(
    samples: Sequence[PerturbedSample], class_names: Sequence[str], alpha: float, beta: float
) -> Figure:
    """A column per forget image: the image, what noise was made, visible, and the image the model is tuned on."""
    pairs = [_class_name(class_names, index) for item in samples for index in (item.label, item.perturbing_label)]
    names = style.labels(pairs, limit=30, width=15)
    headings = [f"{old}\n→ {new}" for old, new in zip(names[::2], names[1::2], strict=True)]
    above = 0.15 * max(heading.count("\n") + 1 for heading in headings)
    kinds = [kind for kind in ("noise_pos", "noise_neg") if any(getattr(sample, kind).any() for sample in samples)]
    figure = style.new_figure(1.9 + 1.15 * len(samples), 2.6 + 1.2 * len(kinds) + above)
    grid = figure.subplots(2 + len(kinds), len(samples), squeeze=False)
    gain = 0.5 / max(samples[0].epsilon, 1e-9)
    scale = f"\n(±{samples[0].epsilon:.3f},\n×{gain:.0f})"
    titles = ["original", *({"noise_pos": "N⁺", "noise_neg": "N⁻"}[kind] + scale for kind in kinds)]
    titles.append(f"perturbed\nα = {alpha:g}\nβ = {beta:g}")
    for column, sample in enumerate(samples):
        pictures = [
            sample.image,
            *(0.5 + gain * getattr(sample, kind) for kind in kinds),
            sample.perturbed(alpha, beta),
        ]
        for axes, picture in zip(grid[:, column], pictures, strict=True):
            _picture(axes, picture)
        grid[0, column].set_title(headings[column], fontsize=8, loc="center")
    for axes, title in zip(grid[:, 0], titles, strict=True):
        axes.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9)
    return figure


def loss_curves(history: Sequence[dict[str, Any]]) -> Figure:
    """Loss on perturbed forget images and on retained images by step, and the learning rate below."""
    figure = style.new_figure(9.0, 4.8)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    steps = _global_steps(history)
    lines = (
        ("loss_forget", "forget (perturbed images)", style.FORGET_COLOUR, "-"),
        ("loss_retain", "retain", style.RETAIN_COLOUR, "--"),
    )
    for key, name, colour, line in lines:
        points = [(step, event[key]) for step, event in zip(steps, history, strict=True) if event.get(key) is not None]
        if points:
            marker = "o" if len(points) < 40 else None
            upper.plot(*zip(*points, strict=True), line, color=colour, label=name, marker=marker, markersize=3.5)
    rates = [(step, event["lr"]) for step, event in zip(steps, history, strict=True) if event.get("lr") is not None]
    if rates:
        lower.plot(*zip(*rates, strict=True), color="#444444", marker="o" if len(rates) == 1 else None)
    upper.set(ylabel="cross-entropy")
    upper.set_title("Loss during fine-tuning")
    upper.set_ylim(bottom=0)
    lower.set(xlabel="step", ylabel="learning\nrate")
    lower.set_ylim(bottom=0)
    lower.ticklabel_format(axis="y", scilimits=(-3, 3))
    for axes in (upper, lower):
        axes.grid()
    if upper.get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper right", ncols=2)
    return figure


def stage_timings(results: RunResults) -> Figure:
    """Seconds per stage, beside what training the retrained model took where that is known."""
    seconds = results.metrics.seconds
    bars = [(stage, float(value), "#56789a") for stage in STAGES if (value := seconds.get(stage)) is not None]
    retraining = seconds.get("retrained_training")
    if retraining is not None:
        bars.append(("retraining,\nfor comparison", float(retraining), style.COLOURS["retrained"]))
    figure = style.new_figure(9.0, 1.3 + 0.42 * len(bars))
    axes = figure.subplots()
    drawn = axes.barh(range(len(bars)), [bar[1] for bar in bars], 0.62, color=[bar[2] for bar in bars])
    axes.bar_label(drawn, labels=[duration(bar[1]) for bar in bars], padding=4, fontsize=9)
    axes.set_yticks(range(len(bars)), [bar[0] for bar in bars])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max((bar[1] for bar in bars), default=1.0) or 1.0)
    axes.set_xlabel("seconds")
    axes.set_title("Time per stage")
    axes.grid(axis="x")
    return figure


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _marked_names(names: Sequence[str], marked: Sequence[bool]) -> list[str]:
    return [name + (" (forgotten)" if mark else "") for name, mark in zip(style.labels(names), marked, strict=True)]


def _embolden(texts: Sequence[Any], marked: Sequence[bool]) -> None:
    for text, bold in zip(texts, marked, strict=True):
        if bold:
            text.set_fontweight("bold")


def _share(value: float) -> str:
    if value == 0:
        return "0"
    return f"{value:.2f}".removeprefix("0") if value >= 0.005 else "<.01"


def _class_name(names: Sequence[str], index: int) -> str:
    return names[index] if 0 <= index < len(names) else str(index)


def _picture(axes: Axes, pixels: np.ndarray) -> None:
    """An (H, W, C) image in [0, 1], gray when it has one channel, its pixels kept sharp."""
    pixels = np.clip(pixels, 0.0, 1.0)
    gray = pixels.shape[2] == 1
    axes.imshow(pixels[:, :, 0] if gray else pixels, cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _global_steps(history: Sequence[dict[str, Any]]) -> list[int]:
    """Steps counted over the whole training, also where each epoch starts again from 0."""
    steps = [int(event["step"]) for event in history]
    if all(later > earlier for earlier, later in pairwise(steps)):
        return steps
    announced = max(int(event.get("steps") or 0) for event in history)  # of the whole training, or of one epoch
    share = announced // (1 + max(int(event["epoch"]) for event in history))
    per_epoch = share if share >= max(steps) else max(announced, *steps)
    return [int(event["epoch"]) * per_epoch + step for event, step in zip(history, steps, strict=True)]
