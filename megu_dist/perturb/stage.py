"""The perturb stage: a Ray Data job whose model actors write ``perturbed/*.parquet``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from megu_dist.config.schema import PerturbSettings
from megu_dist.data import stream
from megu_dist.data.base import Source
from megu_dist.data.readers import ImageReader
from megu_dist.models.checkpoint import Checkpoint
from megu_dist.oracle.transition import Transition
from megu_dist.perturb.actor import Perturber
from megu_dist.perturb.probe import Lesson


def perturb(
    source: Source,
    rows: np.ndarray,
    checkpoint: Checkpoint,
    transition: Transition,
    forgotten: list[int],
    settings: PerturbSettings,
    seed: int,
    actors: int,
    out: Path,
    progress: Callable[[int], None],
    fine: bool = False,
    retained: np.ndarray | None = None,
    keep: bool = False,
) -> dict[str, int]:
    """Perturbs the forget rows; ``fine``: they are sub-classes, and T has a row per fine label.

    ``retained``: rows that a probe of the features learns from before (:mod:`megu_dist.perturb.probe`). ``keep``: an image
    may keep its label (:func:`megu_dist.perturb.labels.label_distribution`).

    Raises when a row is missing afterwards: a forget image is never dropped.
    """
    out.mkdir(parents=True, exist_ok=True)
    reader = ImageReader(source, "train", checkpoint.preprocess, keep_id=True)
    row_bytes = checkpoint.preprocess.image_bytes * (2 + settings.draws)
    chunk = min(stream.task_rows(row_bytes), max(16, -(-len(rows) // (4 * max(1, actors)))))
    seen, probe = 0, None
    if retained is not None:
        seen = len(retained)
        lesson = Lesson(source, retained, checkpoint.preprocess, settings)
        # A single actor learns it by itself: a second process would start for longer than small models take.
        probe = lesson if actors <= 1 else lesson.learn(str(checkpoint.folder), actors, progress)
    arguments = {
        "model_folder": str(checkpoint.folder),
        "transition": transition,
        "forgotten": forgotten,
        "settings": settings,
        "seed": seed,
        "out": str(out),
        "actors": actors,
        "fine": fine,
        "keep": keep,
        "probe": probe,
    }
    done = 0
    for batch in stream.blocks(rows, reader, chunk, Perturber, arguments, actors, settings.num_gpus):
        done += int(batch["rows"].sum())
        progress(seen + done)
    if done != len(rows):
        raise RuntimeError(f"{len(rows)} images were to be perturbed, {done} were")
    return {"images": done}
