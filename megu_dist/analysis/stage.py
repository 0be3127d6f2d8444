"""The analyze stage: features → ``analysis.json`` and ``analysis/map.parquet`` (design §8's numbers are not touched)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from megu_dist.analysis import geometry, maps
from megu_dist.analysis.features import Features, extract, sample
from megu_dist.analysis.request import Request
from megu_dist.config.schema import AnalyzeSettings, EvaluateSettings
from megu_dist.data.base import Source
from megu_dist.errors import UserError
from megu_dist.models.checkpoint import Checkpoint
from megu_dist.models.layers import PENULTIMATE
from megu_dist.store import write_json

SCHEMA = 1


def analyze(
    source: Source,
    request: Request,
    models: dict[str, Checkpoint],
    settings: AnalyzeSettings,
    evaluate: EvaluateSettings,
    seed: int,
    actors: int,
    out: Path,
    told: dict[str, Any],
    progress: Callable[[int], None],
) -> dict[str, Any]:
    """Writes the two artefacts into ``out``; ``source`` has the labels that ``request`` speaks of.

    ``told`` goes into ``analysis.json`` as it is.
    """
    rows = sample(source, request.classes, settings.images_per_class, seed)
    labels, ids, features = extract(source, rows, models, settings.max_layers, evaluate, actors, progress)
    request = with_images(request, labels)
    features = without_repeats(features)
    data = measure(request, labels, features, settings.neighbours)
    points, shares = _maps(features, labels, settings.map, seed)
    data["map"] = {"method": settings.map, "layer": _last(features), "variance": shares}
    data["images"] = len(rows)
    (out / "analysis").mkdir()
    _write_map(out / "analysis" / "map.parquet", request, labels, ids, points)
    write_json(out / "analysis.json", {"schema": SCHEMA, **told, **data})
    return {"images": len(rows)}


def with_images(request: Request, labels: np.ndarray) -> Request:
    """The request without classes that have no test image. Raises :class:`UserError` for a target without one."""
    seen = set(np.unique(labels).tolist())
    for target in request.targets:
        if target not in seen:
            raise UserError(
                f"forget.classes: no test image of {request.names[target]!r}, so there is nothing to analyse; "
                "name classes that have some"
            )
    kept = [c for c in request.classes if c in seen]
    if len(kept) < len(request.targets) + 2:
        raise UserError(
            "megu analyze needs test images of at least two classes that stay; leave some out of forget.classes"
        )
    return Request(request.names, request.targets, kept, request.weights)


def without_repeats(features: Features) -> Features:
    """Drops a last block whose pooled output is the penultimate feature itself, in every model."""
    layers = list(next(iter(features.values())))
    if len(layers) < 2 or PENULTIMATE not in layers:
        return features
    last = [layer for layer in layers if layer != PENULTIMATE][-1]
    pairs = [(found.get(last), found.get(PENULTIMATE)) for found in features.values()]
    if not all(
        a is not None and b is not None and a.shape == b.shape and np.allclose(a, b, atol=1e-5) for a, b in pairs
    ):
        return features
    return {model: {k: v for k, v in found.items() if k != last} for model, found in features.items()}


def measure(request: Request, labels: np.ndarray, features: Features, count: int) -> dict[str, Any]:
    """All numbers: neighbours, energy and distances by model, layer and target; CKA by pair of models and layer."""
    names = request.names
    near = _neighbours(request, labels, features["original"], count)
    data: dict[str, Any] = {
        "targets": [names[t] for t in request.targets],
        "classes": [names[c] for c in request.classes],
        "neighbours": {names[t]: {"names": [names[c] for c in found], "by": by} for t, (found, by) in near.items()},
        "images_per_class": {names[c]: int((labels == c).sum()) for c in request.classes},
        "models": {},
        "cka": {},
    }
    for model, layers in features.items():
        data["models"][model] = {layer: _layer(request, labels, x, near) for layer, x in layers.items()}
    target = np.isin(labels, request.targets)
    for first, second in combinations(features, 2):
        common = [layer for layer in features[first] if layer in features[second]]
        data["cka"][f"{first} / {second}"] = {
            layer: {
                "all": _round(geometry.linear_cka(features[first][layer], features[second][layer])),
                "forgotten": _round(
                    geometry.linear_cka(features[first][layer][target], features[second][layer][target])
                ),
            }
            for layer in common
        }
    return data


def _neighbours(
    request: Request, labels: np.ndarray, original: dict[str, np.ndarray], count: int
) -> dict[int, tuple[list[int], str]]:
    """Per target; the same for every model, from T or from the original model's last features."""
    centres = geometry.centroids(original[list(original)[-1]], labels, request.classes)
    gap = geometry.distances(centres)
    # The directions of all classes sum to nothing: all others together span a class's own direction by construction.
    count = min(count, len(request.classes) - 2)
    distance = np.full((len(request.targets), len(request.names)), np.inf)
    for row, target in enumerate(request.targets):
        distance[row, request.classes] = gap[request.classes.index(target)]
    return {t: request.neighbours(t, count, distance[row]) for row, t in enumerate(request.targets)}


def _layer(
    request: Request, labels: np.ndarray, x: np.ndarray, near: dict[int, tuple[list[int], str]]
) -> dict[str, Any]:
    place = {label: i for i, label in enumerate(request.classes)}
    centres = geometry.centroids(x, labels, request.classes)
    ways, gap = geometry.directions(centres), geometry.distances(centres)
    found: dict[str, Any] = {"width": x.shape[1], "energy": {}, "distance": {}}
    for target, (neighbours, _) in near.items():
        beside = [place[c] for c in neighbours]
        one = geometry.energy(x[labels == target], centres.mean(0), ways[place[target]], ways[beside])
        name = request.names[target]
        found["energy"][name] = one.as_json()
        found["distance"][name] = {
            request.names[c]: _round(gap[place[target], i]) for c, i in zip(neighbours, beside, strict=True)
        }
    return found


def _last(features: Features) -> str:
    return list(features["original"])[-1]


def _maps(
    features: Features, labels: np.ndarray, method: str, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, float | None]]:
    """(N, 2) per model of its last layer, turned towards the original's, and the plane's share of the variance."""
    points: dict[str, np.ndarray] = {}
    shares: dict[str, float | None] = {}
    for model, layers in features.items():
        flat, share = maps.flatten(layers[list(layers)[-1]], method, seed)
        points[model] = maps.aligned(flat, points["original"], labels) if points else flat
        shares[model] = None if share is None else _round(share)
    return points, shares


def _write_map(path: Path, request: Request, labels: np.ndarray, ids: list[str], points: dict[str, np.ndarray]) -> None:
    columns: dict[str, Any] = {"id": pa.array(ids, pa.string()), "label": labels}
    columns["name"] = pa.array([request.names[label] for label in labels.tolist()], pa.string())
    for model, flat in points.items():
        columns |= {f"{model}/x": flat[:, 0].astype(np.float32), f"{model}/y": flat[:, 1].astype(np.float32)}
    pq.write_table(pa.table(columns), path)


def _round(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)
