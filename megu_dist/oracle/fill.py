"""The oracle stage: asks the served oracle for the ratings of the forget concepts' rows and writes ``transition.json``."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from megu_dist.config.schema import OracleSettings
from megu_dist.oracle import serve, transition
from megu_dist.oracle.base import Concept
from megu_dist.store import write_json


def fill(
    settings: OracleSettings,
    class_names: list[str],
    labels: list[int],
    tau: float,
    exclude_self: bool,
    out: Path,
    progress: Callable[[int], None],
) -> dict[str, Any]:
    """Rates every (forget concept, other class) pair: (R, C) ratings, R·(C-1) calls; a concept is wholly like itself."""
    concepts = [Concept(name) for name in class_names]
    wanted = [(i, j) for i in range(len(labels)) for j in range(len(concepts)) if labels[i] != j]
    start = time.monotonic()
    with serve.served(settings) as handle:
        about = handle.about.remote().result(timeout_s=settings.timeout_s)
        pairs = [(concepts[labels[i]], concepts[j]) for i, j in wanted]
        values = serve.rate_all(handle, pairs, settings.timeout_s, progress)
    ratings = np.full((len(labels), len(concepts)), 10.0)
    for (i, j), value in zip(wanted, values, strict=True):
        ratings[i, j] = value
    matrix = transition.from_ratings(ratings.copy(), labels, tau, exclude_self)
    prompt = repr((about["id"], [(c.name, c.description) for c in concepts], labels))
    data = {
        "rows": [class_names[i] for i in labels],
        "row_labels": labels,
        "columns": class_names,
        "ratings": ratings.round(6).tolist(),
        "transition": matrix.tolist(),
        "tau": tau,
        "oracle": {"name": settings.name, "id": about["id"], "stand_in": about["stand_in"]},
        "prompt_hash": hashlib.sha256(prompt.encode()).hexdigest(),
        "calls": len(pairs),
        "cost": 0.0,  # the embedded oracles are free
        "seconds": round(time.monotonic() - start, 3),
    }
    write_json(out / "transition.json", data)
    return {"name": settings.name, "calls": len(pairs), "stand_in": about["stand_in"]}
