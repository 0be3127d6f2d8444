"""The look all figures share: colours, fonts, labels that fit."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe–Ito: told apart with any colour vision, and in grey.
COLOURS = {"original": "#8c8c8c", "unlearned": "#0072B2", "retrained": "#E69F00"}
FORGET_COLOUR, RETAIN_COLOUR, MARK_COLOUR = "#D55E00", "#009E73", "#fbe3d4"
DPI = 130
FALLBACK_FONTS = ("Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans", "WenQuanYi Zen Hei", "Arial Unicode MS")


def label(name: object, limit: int = 32) -> str:
    """A name as drawn: one line, no mathtext, the middle left out when it is longer than ``limit``."""
    return labels([name], limit)[0]


def labels(names: Sequence[object], limit: int = 32, width: int = 0) -> list[str]:
    """Names as drawn, shortened so that different names stay different; on lines of ``width`` where that is given."""
    texts = [" ".join(str(name).split()) for name in names]
    short = [_shorten(text, limit) for text in texts]
    for clash in {item for item in short if short.count(item) > 1}:
        group = [text for text, item in zip(texts, short, strict=True) if item == clash]
        start = _shared_start(group)
        short = [
            _around(text, start, limit) if item == clash and len(set(group)) > 1 else item
            for text, item in zip(texts, short, strict=True)
        ]
    if width:
        short = ["\n".join(textwrap.wrap(text, width)) for text in short]
    return [text.replace("$", r"\$") for text in short]


def _shared_start(texts: Sequence[str]) -> int:
    """How many characters all texts begin with in common."""
    pairs = zip(min(texts), max(texts), strict=False)
    return next((place for place, (one, other) in enumerate(pairs) if one != other), len(min(texts)))


def _shorten(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    tail = (limit - 1) // 2
    return text[: limit - 1 - tail].rstrip() + "…" + text[-tail:].lstrip()


def _around(text: str, place: int, limit: int) -> str:
    """The beginning of a long name and what follows from the word at ``place`` on."""
    head = limit // 3
    start = text.rfind(" ", 0, place + 1) + 1
    if start <= head:
        return text[: limit - 1] + "…" if len(text) > limit else text
    room = limit - head - 1
    rest = text[start:] if len(text) - start <= room else text[start : start + room - 1].rstrip() + "…"
    return text[:head].rstrip() + "…" + rest


def new_figure(width: float, height: float) -> Figure:
    """An empty figure in inches, laid out so that no label is cut off, tied to no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png_bytes(figure: Figure) -> bytes:
    """The figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white")
    return buffer.getvalue()


@contextmanager
def house_style() -> Iterator[None]:
    """Fonts and lines for figures made and saved inside."""
    import matplotlib
    from matplotlib.font_manager import fontManager

    installed = set(fontManager.get_font_names())
    families = ["DejaVu Sans", *(font for font in FALLBACK_FONTS if font in installed)]
    settings = {
        "font.family": families,
        "font.size": 10,
        "axes.titlesize": 11,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "grid.color": "#dddddd",
        "legend.frameon": False,
    }
    with matplotlib.rc_context(settings):
        yield
