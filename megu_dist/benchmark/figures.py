"""Figures of a benchmark: forget–retain trade-off, bars with error bars, cost against gap."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from megu_dist.report.style import COLOURS, DPI, FORGET_COLOUR, label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BARS = (
    ("versus_retrained/tow", "ToW ↑"),
    ("versus_retrained/tow_mia", "ToW-MIA ↑"),
    ("versus_retrained/kl_forget", "KL forget ↓"),
)
OURS = "megu"


def write_figures(cells: pd.DataFrame, folder: Path) -> None:
    """``<group>-<figure>.png`` for every group that has scored cells."""
    folder.mkdir(exist_ok=True)
    scored = cells[(cells["kind"] == "score") & (cells["status"] == "done")]
    for group, part in scored.groupby("group", sort=False):
        for name, draw in (("tradeoff", tradeoff), ("bars", bars), ("cost", cost)):
            figure = draw(part, str(group))
            temporary = folder / f".{group}-{name}.png"
            figure.savefig(temporary, dpi=DPI)
            temporary.rename(folder / f"{group}-{name}.png")


def _figure(width: float, height: float, panels: int = 1) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    return figure, figure.subplots(1, panels, squeeze=False)[0]


def _spread(part: pd.DataFrame, key: str) -> tuple[pd.Series, pd.Series]:
    by = part.groupby("method", sort=False)[key]
    return by.mean(), by.std(ddof=1).fillna(0.0)


def _points(axis: Any, part: pd.DataFrame, x: str, y: str) -> None:
    (mean_x, std_x), (mean_y, std_y) = _spread(part, x), _spread(part, y)
    for method in mean_x.index:
        colour = COLOURS["unlearned"] if method == OURS else COLOURS["original"]
        axis.errorbar(mean_x[method], mean_y[method], std_y[method], std_x[method], "o", color=colour, capsize=2)
        axis.annotate(label(method), (mean_x[method], mean_y[method]), (4, 4), textcoords="offset points", fontsize=7)


def tradeoff(part: pd.DataFrame, title: str) -> Figure:
    """Forget accuracy against retained test accuracy, with the retrained model's point."""
    figure, (axis,) = _figure(6.5, 4.5)
    x, y = "unlearned/acc_forget_train", "unlearned/acc_retain_test"
    _points(axis, part, x, y)
    once = part.drop_duplicates(["target", "seed"])
    for name, mark in (("retrained", "*"), ("original", "s")):
        keys = [key.replace("unlearned", name) for key in (x, y)]
        axis.plot(*(once[key].mean() for key in keys), mark, color=COLOURS["retrained"], markersize=12, label=name)
    axis.set(xlabel="accuracy, forgotten, training", ylabel="accuracy, retained, test", title=label(title))
    axis.legend()
    return figure


def bars(part: pd.DataFrame, title: str) -> Figure:
    """ToW, ToW-MIA and KL with standard deviations over seeds and targets."""
    shown = [(key, name) for key, name in BARS if key in part and part[key].notna().any()]
    figure, axes = _figure(3.6 * max(1, len(shown)), 0.28 * part["method"].nunique() + 1.4, max(1, len(shown)))
    for axis, (key, name) in zip(axes, shown, strict=False):
        mean, std = _spread(part, key)
        order = mean.sort_values(ascending="↑" in name).index
        colours = [COLOURS["unlearned"] if method == OURS else COLOURS["original"] for method in order]
        axis.barh([label(m) for m in order], mean[order], xerr=std[order], color=colours, capsize=2)
        floor = key.replace("versus_retrained", "versus_floor")
        if floor in part and part[floor].notna().any():
            axis.axvline(part[floor].mean(), color=FORGET_COLOUR, linestyle="--", label="second retrained model")
            axis.legend(fontsize=7)
        axis.set_title(name)
        axis.tick_params(labelsize=8)
    figure.suptitle(label(title))
    return figure


def cost(part: pd.DataFrame, title: str) -> Figure:
    """Share of the retraining time against the average gap."""
    figure, (axis,) = _figure(6.5, 4.5)
    ratio, gap = "versus_retrained/seconds_ratio", "versus_retrained/avg_gap"
    if ratio in part and gap in part:
        _points(axis, part.dropna(subset=[ratio]), ratio, gap)
    axis.set(xlabel="seconds / seconds of retraining", ylabel="average gap to the retrained model", title=label(title))
    return figure
