"""What the oracle stage asks about: concepts with descriptions and example images, and the candidates of each row."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from megu_dist.config.schema import OracleSettings
from megu_dist.data.base import Source
from megu_dist.data.coarse import CoarseSource
from megu_dist.errors import UserError, nearest
from megu_dist.oracle.base import Concept
from megu_dist.oracle.confusion import read_confusion
from megu_dist.oracle.fill import Job

MEMBERS_NAMED = 10  # fine classes that describe a coarse one


def shortlisted(settings: OracleSettings, classes: int) -> bool:
    """Whether rows are rated in part only."""
    return 0 < settings.shortlist < classes - 1


def prepare(
    source: Source,
    settings: OracleSettings,
    labels: list[int],
    tau: float,
    exclude_self: bool,
    seed: int,
    without: np.ndarray,
    confusions: Path | None,
    fine: bool = False,
    gone: tuple[int, ...] = (),
) -> Job:
    """The job of one forget request; runs Ray tasks for example images and for the names' similarity where asked.

    ``confusions`` is the table of where forget images go, for the shortlist; ``without`` are rows never shown. With
    ``fine``, ``labels`` are fine labels, and a coarse class stands for what is left of it. ``gone`` are classes that the
    model has forgotten: nothing is likened to them.
    """
    from megu_dist.oracle import examples, shortlist

    names = source.class_names
    rows_from = source.fine if fine and source.fine is not None else source
    row_names = [rows_from.class_names[i] for i in labels]
    own = [-1] * len(labels) if fine else labels  # the column that is the row itself
    scores = []
    if shortlisted(settings, len(names)):
        scores.append(shortlist.name_similarity([*row_names, *names], list(range(len(labels))))[:, len(labels) :])
        if confusions is not None:
            _, rows = read_confusion(confusions)
            scores.append(np.stack([rows.get(name, np.zeros(len(names))) for name in row_names]))
    candidates = shortlist.candidates(settings.shortlist, own, len(names), scores, gone)
    told = read_descriptions(settings.descriptions, known_names(source))
    pictures: dict[int, tuple[bytes, ...]] = {}
    shown: dict[int, tuple[bytes, ...]] = {}
    if settings.images:
        drawn = (settings.images, seed, settings.image_side)
        wanted = sorted({*(() if fine else labels), *(j for row in candidates for j in row)})
        pictures = examples.draw(source, wanted, *drawn, without)
        if fine:
            shown = examples.draw(rows_from, labels, *drawn, np.zeros(0, np.int64))
    left = remaining(source, labels) if fine else {}
    concepts = [Concept(n, told.get(n, left.get(n, "")), pictures.get(i, ())) for i, n in enumerate(names)]
    subjects = [Concept(n, told.get(n, ""), shown.get(i, ())) for i, n in zip(labels, row_names, strict=True)]
    return Job(concepts, labels, candidates, tau, exclude_self, subjects if fine else None, gone)


def known_names(source: Source) -> list[str]:
    """Names that a description may be of: the classes', and the fine classes' where there are any."""
    return source.class_names if source.fine is None else [*source.class_names, *source.fine.class_names]


def remaining(source: Source, forgotten: list[int]) -> dict[str, str]:
    """Coarse name → words for what a model that never saw the ``forgotten`` fine classes knows under that name."""
    if not isinstance(source, CoarseSource):
        return {}
    names = source.fine.class_names
    told = {}
    for label, coarse in enumerate(source.class_names):
        kept = [names[fine] for fine in source.members(label) if fine not in forgotten]
        if kept and kept != [coarse]:
            told[coarse] = "for example " + ", ".join(kept[:MEMBERS_NAMED])
    return told


def read_descriptions(path: str | None, names: list[str]) -> dict[str, str]:
    """``oracle.descriptions``: a JSON object, class name → text. Raises :class:`UserError` for unknown names."""
    if path is None:
        return {}
    file = Path(path).expanduser()
    try:
        data = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"oracle.descriptions={path}: cannot be read as JSON ({error}); give an object of class name: text"
        ) from None
    if not isinstance(data, dict) or not all(isinstance(text, str) for text in data.values()):
        raise UserError(f'oracle.descriptions={path}: must be an object of texts, as in {{"cat": "a small feline"}}')
    for name in data:
        if name not in names:
            raise UserError(f"oracle.descriptions={path}: the data has no class {name!r}; {nearest(name, names)}")
    return data
