"""The geometry of class features: directions, shared and specific energy, distances, similarity of representations.

Features are (N, D) float arrays of one layer; labels (N,). All numbers are free of the features' scale.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

TINY = 1e-12


@dataclass(frozen=True)
class Energy:
    """Shares of a class's centred feature energy Σ‖x − m‖²; ``shared`` + ``specific`` = 1.

    ``shared`` lies in the span of the neighbours' directions; ``own`` is the part of ``specific`` along what is left of
    the class's own direction outside that span; the rest of ``specific`` is variation within the class. ``chance`` is
    what a span of random directions would hold, k / D.
    """

    shared: float
    specific: float
    own: float
    chance: float

    def as_json(self) -> dict[str, float]:
        """Plain values."""
        return {name: round(float(value), 6) for name, value in asdict(self).items()}


def centroids(features: np.ndarray, labels: np.ndarray, classes: list[int]) -> np.ndarray:
    """(K, D) means of the classes."""
    return np.stack([features[labels == label].mean(0, dtype=np.float64) for label in classes])


def directions(centres: np.ndarray) -> np.ndarray:
    """(K, D): each centroid minus the mean of all (every class counts alike), of length 1; 0 where there is no length."""
    moved = centres - centres.mean(0)
    length = np.linalg.norm(moved, axis=1, keepdims=True)
    return np.where(length > TINY, moved / np.maximum(length, TINY), 0.0)


def energy(features: np.ndarray, centre: np.ndarray, own: np.ndarray, neighbours: np.ndarray) -> Energy:
    """Of one class's ``features`` (n, D) around ``centre`` (D,), with its direction ``own`` (D,), ``neighbours`` (k, D)."""
    moved = features.astype(np.float64) - centre
    total = float((moved**2).sum())
    basis = _basis(neighbours)
    if total <= TINY:
        return Energy(0.0, 0.0, 0.0, len(basis) / features.shape[1])
    shared = float(((moved @ basis.T) ** 2).sum()) / total
    left = own - basis.T @ (basis @ own)
    length = float(np.linalg.norm(left))
    along = float(((moved @ (left / length)) ** 2).sum()) / total if length > 1e-9 else 0.0
    shared = min(shared, 1.0)
    return Energy(shared, 1.0 - shared, min(along, 1.0 - shared), len(basis) / features.shape[1])


def _basis(vectors: np.ndarray) -> np.ndarray:
    """(r, D) orthonormal rows that span ``vectors`` (k, D), r ≤ k."""
    _, sizes, rows = np.linalg.svd(vectors, full_matrices=False)
    return np.asarray(rows[sizes > 1e-9 * max(float(sizes.max(initial=0.0)), TINY)])


def distances(centres: np.ndarray) -> np.ndarray:
    """(K, K) Euclidean distances between centroids, divided by their mean over pairs."""
    gap = np.linalg.norm(centres[:, None] - centres[None], axis=2)
    pairs = gap[np.triu_indices(len(centres), 1)]
    mean = float(pairs.mean()) if len(pairs) else 0.0
    return gap / mean if mean > TINY else gap


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Linear CKA of two representations (N, D₁), (N, D₂) of the same images (Kornblith et al. 2019, eq. 3), in [0, 1].

    ‖YᵀX‖²_F / (‖XᵀX‖_F ‖YᵀY‖_F) on centred columns; biased upwards where N is not well above D. NaN for a constant one.
    """
    x, y = (v.astype(np.float64) - v.mean(0, dtype=np.float64) for v in (x, y))
    if len(x) < min(x.shape[1], y.shape[1]):  # the same numbers from the smaller Gram matrices
        a, b = x @ x.T, y @ y.T
        cross, norm = float((a * b).sum()), float(np.linalg.norm(a) * np.linalg.norm(b))
    else:
        cross = float((np.asarray(y.T @ x) ** 2).sum())
        norm = float(np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    return cross / norm if norm > TINY else float("nan")
