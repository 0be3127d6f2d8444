"""What the oracle stage asks about: concepts with descriptions and example images, and the candidates of each row."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from megu_dist.config.schema import OracleSettings
from megu_dist.data.base import Source
from megu_dist.errors import UserError, nearest
from megu_dist.oracle.base import Concept
from megu_dist.oracle.confusion import read_confusion
from megu_dist.oracle.fill import Job


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
) -> Job:
    """The job of one forget request; runs Ray tasks for example images and for the names' similarity where asked.

    ``confusions`` is the table of where forget images go, for the shortlist; ``without`` are rows never shown.
    """
    from megu_dist.oracle import examples, shortlist

    names = source.class_names
    scores = []
    if shortlisted(settings, len(names)):
        scores.append(shortlist.name_similarity(names, labels))
        if confusions is not None:
            _, rows = read_confusion(confusions)
            scores.append(np.stack([rows.get(names[i], np.zeros(len(names))) for i in labels]))
    candidates = shortlist.candidates(settings.shortlist, labels, len(names), scores)
    told = read_descriptions(settings.descriptions, names)
    pictures: dict[int, tuple[bytes, ...]] = {}
    if settings.images:
        wanted = sorted({*labels, *(j for row in candidates for j in row)})
        pictures = examples.draw(source, wanted, settings.images, seed, settings.image_side, without)
    concepts = [Concept(name, told.get(name, ""), pictures.get(i, ())) for i, name in enumerate(names)]
    return Job(concepts, labels, candidates, tau, exclude_self)


def read_descriptions(path: str | None, names: list[str]) -> dict[str, str]:
    """``oracle.descriptions``: a JSON object, class name → text. Raises :class:`UserError` for unknown names."""
    if path is None:
        return {}
    file = Path(path).expanduser()
    try:
        data = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"oracle.descriptions={path}: cannot be read as JSON ({error})") from None
    if not isinstance(data, dict) or not all(isinstance(text, str) for text in data.values()):
        raise UserError(f'oracle.descriptions={path}: must be an object of texts, as in {{"cat": "a small feline"}}')
    for name in data:
        if name not in names:
            raise UserError(f"oracle.descriptions={path}: the data has no class {name!r}; {nearest(name, names)}")
    return data
