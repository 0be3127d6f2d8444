"""Two-dimensional maps of features, turned so that the maps of several models can be compared by eye."""

from __future__ import annotations

import importlib.util

import numpy as np

from megu_dist.errors import UserError


def check(method: str) -> None:
    """Raises :class:`UserError` when the method's package is missing."""
    if method == "umap" and importlib.util.find_spec("umap") is None:
        raise UserError("analyze.map=umap needs `pip install umap-learn`; analyze.map=pca needs nothing more")


def flatten(features: np.ndarray, method: str, seed: int) -> tuple[np.ndarray, float | None]:
    """(N, D) → (N, 2), and for PCA the share of the variance that the plane holds."""
    if method == "umap":
        from umap import UMAP  # type: ignore[import-not-found,unused-ignore]

        neighbours = min(15, max(2, len(features) - 1))
        return np.asarray(UMAP(n_components=2, n_neighbors=neighbours, random_state=seed).fit_transform(features)), None
    from sklearn.decomposition import PCA

    room = min(2, *features.shape)
    fitted = PCA(n_components=room, svd_solver="full").fit(features)
    plane = fitted.transform(features)
    return np.pad(plane, ((0, 0), (0, 2 - room))), float(fitted.explained_variance_ratio_.sum())


def aligned(points: np.ndarray, reference: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """``points`` (N, 2), turned and mirrored so that class centres lie as near as can be to those of ``reference``.

    Axes of a map have no meaning of their own; distances within the map stay as they are.
    """
    from scipy.linalg import orthogonal_procrustes

    classes = np.unique(labels)
    mine, theirs = (np.stack([p[labels == c].mean(0) for c in classes]) for p in (points, reference))
    turn, _ = orthogonal_procrustes(mine - mine.mean(0), theirs - theirs.mean(0))
    return np.asarray((points - mine.mean(0)) @ turn)
