"""What `megu analyze` left in a run folder, as tables for the terminal and as a section of the report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megu_dist.errors import UserError
from megu_dist.report.load import MODELS

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

FIGURES = ("analysis_energy", "analysis_distances", "analysis_similarity", "analysis_map")
ENERGY_WORDS = (
    "How much of the forgotten class's feature energy (squared distance from the mean of all classes) lies in the "
    "directions of its neighbours. High: its features are shared with them; the rest is its own. "
    "Compare the unlearned model with the retrained one."
)
DISTANCE_WORDS = (
    "Distance from the forgotten class's centroid to those of its neighbours, relative to the mean over all pairs of "
    "classes. Small: the model hardly tells them apart."
)
CKA_WORDS = (
    "Linear CKA (Kornblith et al. 2019) of two models' features of the same test images: 1 is the same up to rotation "
    "and scale. A good unlearned model is near the retrained one on forgotten images, near both on all images."
)


@dataclass(frozen=True)
class Analysis:
    """analysis.json and the map beside it."""

    data: dict[str, Any]
    names: list[str]  # class of each image on the map
    points: dict[str, np.ndarray]  # model → (N, 2)

    @classmethod
    def load(cls, folder: Path) -> Analysis | None:
        """Of a run folder; None where `megu analyze` has not been there, or has seen another unlearned model."""
        file = folder / "analysis.json"
        if not file.is_file():
            return None
        import pyarrow.parquet as pq

        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            table = pq.read_table(folder / "analysis" / "map.parquet")
            names = table["name"].to_pylist()
            points = {m: np.stack([table[f"{m}/x"].to_numpy(), table[f"{m}/y"].to_numpy()], 1)
                      for m in MODELS if f"{m}/x" in table.column_names}  # fmt: skip
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{file} is not readable ({error}): run `megu analyze` again") from None
        return cls(data, names, points)

    def is_of(self, folder: Path) -> bool:
        """Whether the unlearned model that was analysed is the one in ``folder`` now."""
        from megu_dist.models.checkpoint import open_checkpoint

        seen = self.data.get("fingerprints", {}).get("unlearned")
        return (
            not (folder / "model" / "config.json").is_file()
            or seen == open_checkpoint(str(folder / "model")).fingerprint()
        )

    def figures(self) -> Iterator[tuple[str, str, str, str, Figure]]:
        """Name, heading, caption, alternative text and figure; made inside :func:`style.house_style`."""
        from megu_dist.report import analysis_figures as draw

        told = "; ".join(f"{target}: {', '.join(found['names'])}" for target, found in self.data["neighbours"].items())
        caption = f"{ENERGY_WORDS} Neighbours: {told}."
        if len(self.data["targets"]) > draw.SHOWN_TARGETS:
            caption += f" Drawn: the first {draw.SHOWN_TARGETS} forgotten classes; the table has all."
        yield (
            FIGURES[0],
            "Shared and own features",
            caption,
            "Line chart of shared energy by layer.",
            draw.energy(self.data),
        )
        alt = "Line chart of centroid distances by layer."
        yield FIGURES[1], "Distance to the neighbours", DISTANCE_WORDS, alt, draw.distances(self.data)
        if self.data["cka"]:
            alt = "Line chart of linear CKA by layer."
            yield FIGURES[2], "Similarity of the models", CKA_WORDS, alt, draw.similarity(self.data)
        way = "principal components" if self.data["map"]["method"] == "pca" else "UMAP"
        caption = (
            f"Test images by their last features before the classifier ({way}, a plane of its own for each model, turned "
            "alike). Crosses: what was to be forgotten."
        )
        yield (
            FIGURES[3],
            "Map of features",
            caption,
            "Scatter plots of features, a panel per model.",
            draw.feature_map(self.data, self.points, self.names),
        )

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Headings and rows of the table: a row per target and layer."""
        models = [name for name in MODELS if name in self.data["models"]]
        headings = ["class", "layer", "width", "random"]
        headings += [f"shared, {model}" for model in models] + [f"distance, {model}" for model in models]
        out = []
        for target in self.data["targets"]:
            for layer, first in self.data["models"]["original"].items():
                found = [self.data["models"][model].get(layer) for model in models]
                shared = ["-" if f is None else f"{f['energy'][target]['shared']:.3f}" for f in found]
                gap = ["-" if f is None else f"{np.mean(list(f['distance'][target].values())):.2f}" for f in found]
                chance = f"{first['energy'][target]['chance']:.3f}"
                out.append([target, layer, str(first["width"]), chance, *shared, *gap])
        return headings, out

    def cka_rows(self) -> tuple[list[str], list[list[str]]]:
        """Headings and rows: CKA by layer, on all and on forgotten images, for each pair of models."""
        headings, rows = ["layer"], []
        for pair in self.data["cka"]:
            headings += [f"{pair}, all", f"{pair}, forgotten"]
        for layer in self.data["models"]["original"]:
            found = [layers.get(layer, {}) for layers in self.data["cka"].values()]
            cells = [f.get(part) for f in found for part in ("all", "forgotten")]
            rows.append([layer, *("-" if cell is None else f"{cell:.3f}" for cell in cells)])
        return headings, rows

    def tables(self) -> list[tuple[str, tuple[list[str], list[list[str]]]]]:
        """Caption, then headings and rows, of each table."""
        near = "; ".join(
            f"{target}: {', '.join(found['names'])} (by {found['by']})"
            for target, found in self.data["neighbours"].items()
        )
        caption = (
            "shared: share of the forgotten class's feature energy in its neighbours' directions (random: what as many "
            f"random directions would hold); distance: to their centroids, 1 = mean over all pairs. Neighbours: {near}"
        )
        found = [(caption, self.rows())]
        if self.data["cka"]:
            found.append(("Linear CKA between two models, on all and on forgotten test images", self.cka_rows()))
        return found


def terminal(analysis: Analysis) -> list[Table]:
    """The tables as printed."""
    from rich.table import Table
    from rich.text import Text

    tables = []
    for title, (headings, rows) in analysis.tables():
        table = Table(title=Text(title), title_justify="left")
        for place, heading in enumerate(headings):
            table.add_column(heading, justify="left" if place == 0 or heading == "layer" else "right", overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))
        tables.append(table)
    return tables


def write_figures(folder: Path) -> None:
    """``analysis/*.png`` of an analysis in ``folder``."""
    from megu_dist.report import style

    analysis = Analysis.load(folder)
    assert analysis is not None
    with style.house_style():
        for name, _, _, _, figure in analysis.figures():
            (folder / "analysis" / f"{name.removeprefix('analysis_')}.png").write_bytes(style.png_bytes(figure))
