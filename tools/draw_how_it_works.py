"""Draws docs/figures/how-it-works.svg: what goes in, the six stages and what runs them, what comes out."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path

FIGURE = Path(__file__).resolve().parents[1] / "docs" / "figures" / "how-it-works.svg"
WIDTH, HEIGHT = 1000, 330
INK, PALE, LINE = "#1f2933", "#52606d", "#9aa5b1"


@dataclass(frozen=True)
class Box:
    """A rectangle with a bold title and lines below it; ``foot`` is set apart at its bottom."""

    x: float
    y: float
    width: float
    height: float
    title: str
    lines: tuple[str, ...]
    foot: str = ""
    fill: str = "#ffffff"

    def svg(self) -> str:
        """The elements."""
        middle = self.x + self.width / 2
        parts = [
            f'<rect x="{self.x}" y="{self.y}" width="{self.width}" height="{self.height}" rx="6" fill="{self.fill}" '
            f'stroke="{LINE}"/>',
            text(middle, self.y + 22, self.title, 14, "bold"),
        ]
        parts += [text(middle, self.y + 44 + 16 * i, line, 11.5) for i, line in enumerate(self.lines)]
        if self.foot:
            parts.append(text(middle, self.y + self.height - 10, self.foot, 11, "normal", PALE))
        return "\n".join(parts)


def text(x: float, y: float, words: str, size: float, weight: str = "normal", fill: str = INK) -> str:
    """Centred words."""
    style = f'font-size="{size}" font-weight="{weight}" fill="{fill}" text-anchor="middle"'
    return f'<text x="{x}" y="{y}" {style}>{escape(words)}</text>'


def arrow(*points: tuple[float, float]) -> str:
    """A line through the points with a head at its end."""
    path = " ".join(f"{x},{y}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{PALE}" stroke-width="1.6" marker-end="url(#head)"/>'


INPUTS = [
    Box(20, 16, 220, 62, "forget request", ("a class, a fine class, image ids",), fill="#fdf3e7"),
    Box(390, 16, 220, 62, "trained model θ_o", ("any transformers classifier",), fill="#fdf3e7"),
    Box(760, 16, 220, 62, "its training images", ("Parquet, folders, WebDataset",), fill="#fdf3e7"),
]
STAGES = [
    ("split", ("finds the images", "to be forgotten"), "Ray Data"),
    ("oracle", ("which classes look", "alike: the matrix T"), "Ray Serve"),
    ("perturb", ("a label ŷ ~ T·p and", "noise for each image"), "Ray Data, actors"),
    ("finetune", ("short training on those", "and on retained images"), "Ray Train, DeepSpeed"),
    ("evaluate", ("accuracy, attacks,", "distance to retraining"), "Ray Data, actors"),
    ("report", ("tables and figures,", "one HTML file"), "driver"),
]
OUTPUTS = [
    Box(512, 252, 140, 62, "model/", ("safetensors, config",), fill="#e9f5ec"),
    Box(676, 252, 140, 62, "metrics.json", ("and predictions",), fill="#e9f5ec"),
    Box(840, 252, 140, 62, "report.html", ("opens offline",), fill="#e9f5ec"),
]


def figure() -> str:
    """The whole file."""
    step, width, top = 164, 152, 122
    stages = [Box(14 + step * i, top, width, 96, *one, fill="#e8f0fb") for i, one in enumerate(STAGES)]
    middle = [box.x + width / 2 for box in stages]
    arrows = [arrow((middle[0], 78), (middle[0], top - 4))]
    arrows += [arrow((500, 78), (500, 98), (middle[2], 98), (middle[2], top - 4))]
    arrows += [arrow((500, 98), (middle[3] - 24, 98), (middle[3] - 24, top - 4))]
    arrows += [arrow((870, 78), (870, 98), (middle[4], 98), (middle[4], top - 4))]
    arrows += [arrow((870, 98), (middle[3] + 24, 98), (middle[3] + 24, top - 4))]
    arrows += [arrow((a.x + width, top + 48), (b.x - 3, top + 48)) for a, b in pairwise(stages)]
    arrows += [arrow((x, top + 96), (x, 248)) for x in (middle[3], middle[4], middle[5])]
    note = text(254, 288, "Each stage writes its artefacts once, under a key of all its inputs:", 12, "normal", PALE)
    note += text(
        254, 306, "the same command again skips what is done, or goes on where it was stopped.", 12, "normal", PALE
    )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" role="img">\n'
        "<title>From a forget request, a model and its images, in six stages, to a model, metrics and a report</title>\n"
        '<defs><marker id="head" markerWidth="8" markerHeight="8" refX="6" refY="4" orient="auto">'
        f'<path d="M0,0 L8,4 L0,8 z" fill="{PALE}"/></marker></defs>\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>'
    )
    boxes = [box.svg() for box in (*INPUTS, *stages, *OUTPUTS)]
    return "\n".join([head, *arrows, *boxes, note, "</svg>"]) + "\n"


if __name__ == "__main__":
    FIGURE.parent.mkdir(exist_ok=True)
    FIGURE.write_text(figure())
