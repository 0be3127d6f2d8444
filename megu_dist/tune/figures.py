"""Figures of a sweep: heatmaps over two keys, curves over one, importances, the Pareto front."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from megu_dist.report import style
from megu_dist.tune.outcome import Outcome
from megu_dist.tune.space import Dimension, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Drawn = tuple[str, str, str, str, Any]  # name, heading, caption, alternative text, figure
# Column of ``settings``, title, colour map: dark is good.
SURFACES = (
    ("unlearned/acc_forget_test", "accuracy, forgotten ↓", "Oranges_r"),
    ("unlearned/acc_retain_test", "accuracy, retained ↑", "Greens"),
    ("versus_retrained/tow", "ToW ↑", "Blues"),
)
NO_RETRAINED = ("score", "score ↑", "Blues")
CURVES = (
    ("unlearned/acc_forget_test", "accuracy, forgotten", style.FORGET_COLOUR, "-"),
    ("unlearned/acc_retain_test", "accuracy, retained", style.RETAIN_COLOUR, "--"),
    ("versus_retrained/tow", "ToW", style.COLOURS["unlearned"], "-."),
    ("score", "score", "#333333", ":"),
)
MOST_PAIRS = 6


def figures(found: Outcome, space: list[Dimension]) -> Iterator[Drawn]:
    """All that the sweep has data for, in the order of the page."""
    if found.best is None:
        return
    pairs = [pair for pair in combinations(space, 2) if _is_grid(found, *pair)]
    for first, second in pairs[:MOST_PAIRS]:
        name = f"heatmap-{first.key}-{second.key}".replace(".", "_")
        caption = (
            f"Each square is the mean over seeds with the other settings as recommended, ± its standard deviation: "
            f"{first.key} upwards, {second.key} to the right. Validation images. The frame marks the recommended setting."
        )
        yield name, f"{first.key} × {second.key}", caption, f"Heatmaps. {caption}", heatmaps(found, first, second)
    for dimension in space:
        if found.settings[dimension.key].nunique() > 1:
            name = f"curve-{dimension.key}".replace(".", "_")
            caption = _curve_caption(found, dimension)
            yield name, f"One at a time: {dimension.key}", caption, f"Line chart. {caption}", curve(found, dimension)
    if found.importances:
        caption = "Share of the score's variance over the swept space that each key explains (functional ANOVA)."
        yield "importances", "What matters", caption, f"Bar chart. {caption}", importances(found)
    caption = (
        "Each point is a setting, with standard deviations over seeds. Those on the front are beaten by no other in forget "
        "gap, retain gap and seconds together. Nearer to the corner is better."
    )
    yield "pareto", "Forgetting against keeping", caption, f"Scatter plot. {caption}", pareto(found)


def _slice(found: Outcome, *free: str) -> pd.DataFrame:
    """Settings whose other keys are as in the recommended one."""
    assert found.best is not None
    table = found.settings
    for key in found.keys:
        if key not in free:
            table = table[table[key].map(shown) == shown(found.best[key])]
    return table


def _is_grid(found: Outcome, first: Dimension, second: Dimension) -> bool:
    """Whether there is a setting at every crossing of two keys' values."""
    if not (first.values and second.values) or min(len(first.values), len(second.values)) < 2:
        return False
    cells = _slice(found, first.key, second.key)
    return len(cells.drop_duplicates([first.key, second.key])) == len(first.values) * len(second.values)


def heatmaps(found: Outcome, first: Dimension, second: Dimension) -> Figure:
    """A panel for accuracy on what is forgotten, on what is retained, and ToW (without a retrained model, the score)."""
    assert found.best is not None
    cells = _slice(found, first.key, second.key)
    panels = [panel for panel in SURFACES if panel[0] in cells and cells[panel[0]].notna().all()]
    panels = panels if any(p[0].startswith("versus") for p in panels) else [*panels, NO_RETRAINED]
    rows, columns = [[shown(v) for v in d.values] for d in (first, second)]
    figure = style.new_figure(1.1 + len(panels) * (0.9 + 0.68 * len(columns)), 1.3 + 0.55 * len(rows))
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    at = (rows.index(shown(found.best[first.key])), columns.index(shown(found.best[second.key])))
    for axis, (column, title, colours) in zip(axes, panels, strict=True):
        mean, std = np.full((2, len(rows), len(columns)), np.nan)
        for _, cell in cells.iterrows():
            place = rows.index(shown(cell[first.key])), columns.index(shown(cell[second.key]))
            mean[place], std[place] = cell[column], cell.get(f"{column}_std", 0.0)
        _surface(axis, mean, std, colours)
        axis.set(title=title, xlabel=second.key, ylabel=first.key)
        axis.set_xticks(range(len(columns)), style.labels(columns, 10))
        axis.set_yticks(range(len(rows)), style.labels(rows, 10))
        axis.add_patch(_frame(at))
    return figure


def _surface(axis: Any, mean: np.ndarray, std: np.ndarray, colours: str) -> None:
    image = axis.imshow(mean, origin="lower", cmap=colours, aspect="auto")
    low, high = image.get_clim()
    for (row, column), value in np.ndenumerate(mean):
        share = (value - low) / max(1e-12, high - low)
        dark = share < 0.4 if colours.endswith("_r") else share > 0.6
        text = f"{value:.3f}\n±{std[row, column]:.3f}"
        axis.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
    for spine in axis.spines.values():
        spine.set_visible(False)


def _frame(at: tuple[int, int]) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((at[1] - 0.5, at[0] - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=2)


def _curve_caption(found: Outcome, dimension: Dimension) -> str:
    alone = len(found.keys) == 1
    if dimension.values:
        return "Mean over seeds ± standard deviation" + ("." if alone else "; all other keys as recommended.")
    return "Every setting that was tried" + ("." if alone else ", with its own values of the other keys.")


def curve(found: Outcome, dimension: Dimension) -> Figure:
    """Accuracies, ToW and score over one key: a line with a band over seeds, or a point per setting of a range."""
    table = _slice(found, dimension.key) if dimension.values else found.settings
    numeric = pd.api.types.is_numeric_dtype(table[dimension.key])
    table = table.sort_values(dimension.key) if numeric else table
    places = table[dimension.key].to_numpy(float) if numeric else np.arange(len(table))
    figure = style.new_figure(6.5, 3.6)
    axis = figure.subplots()
    for column, name, colour, line in CURVES:
        if column not in table or table[column].isna().all():
            continue
        mean, std = table[column].to_numpy(float), table[f"{column}_std"].to_numpy(float)
        if dimension.values:
            axis.plot(places, mean, line, color=colour, marker="o", markersize=4, label=name)
            axis.fill_between(places, mean - std, mean + std, color=colour, alpha=0.15, linewidth=0)
        else:
            axis.errorbar(places, mean, std, fmt="o", color=colour, markersize=4, capsize=2, label=name)
    if not numeric:
        axis.set_xticks(places, style.labels([shown(v) for v in table[dimension.key]], 16))
    if dimension.log:
        axis.set_xscale("log")
    assert found.best is not None
    if numeric:
        axis.axvline(float(found.best[dimension.key]), color="#999999", linewidth=1, zorder=0)
    axis.set(xlabel=dimension.key)
    axis.grid(axis="y")
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def importances(found: Outcome) -> Figure:
    """A bar per key."""
    figure = style.new_figure(6.0, 0.9 + 0.35 * len(found.importances))
    axis = figure.subplots()
    ordered = sorted(found.importances.items(), key=lambda item: item[1])
    axis.barh([key for key, _ in ordered], [share for _, share in ordered], color=style.COLOURS["unlearned"])
    axis.set(xlim=(0, 1), xlabel="share of the score's variance")
    return figure


def pareto(found: Outcome) -> Figure:
    """Forget gap against retain gap; colour is seconds; the front is ringed."""
    figure = style.new_figure(6.5, 4.2)
    axis = figure.subplots()
    table = found.settings
    x, y = table["retain_gap"], table["forget_gap"]
    axis.errorbar(x, y, table["forget_gap_std"], table["retain_gap_std"], fmt="none", ecolor="#cccccc", zorder=1)
    points = axis.scatter(x, y, c=table["seconds"], cmap="viridis_r", s=30, zorder=2)
    ring = table.iloc[found.front]
    axis.scatter(
        ring["retain_gap"], ring["forget_gap"], s=90, facecolors="none", edgecolors="black", label="front", zorder=3
    )
    assert found.best is not None
    axis.plot(found.best["retain_gap"], found.best["forget_gap"], "*", color=style.FORGET_COLOUR, markersize=15,
              label="recommended", zorder=4)  # fmt: skip
    figure.colorbar(points, ax=axis, label="seconds")
    axis.set(xlabel="retain gap ↓", ylabel="forget gap ↓")
    axis.legend()
    return figure
