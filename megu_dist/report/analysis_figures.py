"""The figures of `megu analyze`: energy, distances and similarity by layer, and the 2-D maps. They only draw."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from megu_dist.report import style
from megu_dist.report.load import MODELS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN_TARGETS = 3
# Okabe–Ito first; none near the forgotten classes' own colours.
CLASS_COLOURS = ("#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#d6c000", "#7a5ba6", "#8b5a2b", "#9acd32", "#7f8fa6")
TARGET_COLOURS = (style.FORGET_COLOUR, "#000000", "#8e0152")
OTHER_COLOUR = "#c4c4c4"
PAIR_STYLES = {"original / unlearned": ("#0072B2", "-"), "original / retrained": ("#E69F00", "--"),
               "unlearned / retrained": ("#444444", ":")}  # fmt: skip
LINES = {"original": "-", "unlearned": "-", "retrained": "--"}


def energy(data: dict[str, Any]) -> Figure:
    """Share of each target's energy that lies in its neighbours' directions, by layer; a line per model."""
    targets = data["targets"][:SHOWN_TARGETS]
    figure, panels = _panels(data, len(targets))
    for axes, target in zip(panels, targets, strict=True):
        for model in _models(data):
            layers = data["models"][model]
            values = [found["energy"][target]["shared"] for found in layers.values()]
            axes.plot(list(layers), values, LINES[model], color=style.COLOURS[model], marker="o", label=model)
        layers = data["models"]["original"]
        chance = [found["energy"][target]["chance"] for found in layers.values()]
        axes.plot(list(layers), chance, ":", color="#444444", label="random directions")
        axes.set_title(style.label(target))
        axes.set_ylim(0, 1)
    panels[0].set_ylabel("share of the class's energy in\nits neighbours' directions")
    _finish(figure, panels)
    return figure


def distances(data: dict[str, Any]) -> Figure:
    """Mean distance from each target's centroid to its neighbours', by layer; 1 is the mean over all pairs."""
    targets = data["targets"][:SHOWN_TARGETS]
    figure, panels = _panels(data, len(targets))
    for axes, target in zip(panels, targets, strict=True):
        for model in _models(data):
            layers = data["models"][model]
            values = [np.mean(list(found["distance"][target].values())) for found in layers.values()]
            axes.plot(list(layers), values, LINES[model], color=style.COLOURS[model], marker="o", label=model)
        axes.axhline(1, color="#444444", linestyle=":", linewidth=1, label="mean over all pairs of classes")
        axes.set_title(style.label(target))
        axes.set_ylim(bottom=0)
    panels[0].set_ylabel("centroid distance\nto the neighbours")
    _finish(figure, panels)
    return figure


def similarity(data: dict[str, Any]) -> Figure:
    """Linear CKA between the models by layer: on all images, and on images of the forgotten classes."""
    figure, panels = _panels(data, 2)
    for axes, part, title in zip(panels, ("all", "forgotten"), ("all images", "forgotten images"), strict=True):
        for pair, layers in data["cka"].items():
            colour, line = PAIR_STYLES.get(pair, ("#444444", "-"))
            values = [np.nan if found[part] is None else found[part] for found in layers.values()]
            axes.plot(list(layers), values, line, color=colour, marker="o", label=pair)
        axes.set_title(title)
        axes.set_ylim(0, 1.03)
    panels[0].set_ylabel("linear CKA")
    _finish(figure, panels)
    return figure


def feature_map(data: dict[str, Any], points: dict[str, np.ndarray], names: Sequence[str]) -> Figure:
    """A panel per model: test images in the plane, coloured by class; ``points`` model → (N, 2), ``names`` (N,)."""
    models = [name for name in MODELS if name in points]
    colours = class_colours(data)
    figure = style.new_figure(1.0 + 4.0 * len(models), 5.0 + 0.11 * len(colours))
    panels = figure.subplots(1, len(models), squeeze=False)[0]
    named = np.asarray(names)
    for axes, model in zip(panels, models, strict=True):
        for name, colour in [(None, OTHER_COLOUR), *colours.items()]:
            target = name in data["targets"]
            chosen = ~np.isin(named, list(colours)) if name is None else named == name
            if chosen.any():
                x, y = points[model][chosen].T
                text = "other classes" if name is None else style.label(name) + (" (forgotten)" if target else "")
                axes.scatter(x, y, s=34 if target else 14, c=colour, marker="X" if target else "o", linewidths=0.3,
                             edgecolors="white", label=text, zorder=3 if target else 2)  # fmt: skip
        variance = data["map"]["variance"].get(model)
        axes.set_title(model if variance is None else f"{model}\nplane holds {variance:.0%} of the variance")
        axes.set(xticks=[], yticks=[])
        axes.set_aspect("equal", adjustable="datalim")
        axes.spines[:].set_visible(True)
        axes.spines[:].set_color("#dddddd")
    handles, texts = panels[0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside lower center", ncols=min(5, len(texts)), markerscale=1.3)
    return figure


def class_colours(data: dict[str, Any]) -> dict[str, str]:
    """Targets in the forget colours, their neighbours next, then others while there are colours; the rest stays grey."""
    near = [name for target in data["targets"] for name in data["neighbours"][target]["names"]]
    rest = list(dict.fromkeys([*near, *data["classes"]]))
    rest = [name for name in rest if name not in data["targets"]]
    if len(rest) > len(CLASS_COLOURS):
        rest = [name for name in rest if name in near]
    palette = dict(zip(rest, CLASS_COLOURS, strict=False))
    return palette | dict(zip(data["targets"], cycle(TARGET_COLOURS), strict=False))


def _models(data: dict[str, Any]) -> list[str]:
    return [name for name in MODELS if name in data["models"]]


def _panels(data: dict[str, Any], count: int) -> tuple[Figure, list[Axes]]:
    layers = list(data["models"]["original"])
    below = 0.06 * max(map(len, layers))
    figure = style.new_figure(max(6.0, 1.0 + max(3.2, 0.42 * len(layers)) * count), 3.6 + below)
    return figure, list(figure.subplots(1, count, squeeze=False, sharey=True)[0])


def _finish(figure: Figure, panels: Sequence[Axes]) -> None:
    for axes in panels:
        axes.tick_params(axis="x", rotation=45)
        for text in axes.get_xticklabels():
            text.set(ha="right", rotation_mode="anchor")
        axes.margins(x=0.08)
        axes.grid(axis="y")
    handles, texts = panels[0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside upper center", ncols=2 if figure.get_figwidth() < 8 else len(texts))
