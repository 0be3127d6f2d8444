"""U-LiRA (Hayes et al. 2024, "Inexact unlearning needs more careful evaluations"): a likelihood-ratio attack per image.

For each forgotten image x, an attacker who can train shadow models knows how sure models that *unlearned* x are of its
label, and how sure models *retrained* without it are. Both are normal in φ = log p_y − log(1 − p_y) (Carlini et al.
2022). A model is attacked by log N(φ; unlearned) − log N(φ; retrained). ``u_lira_auc`` in [0, 1]: 0.5 cannot be told
from retraining, lower is better; ``u_lira_tpr`` is the share of unlearned images found at 1 % false positives, 0.01 at
best.

Each shadow in turn is the one attacked, with normals fitted to the others. Deviates: shadows differ by the seed of
training and share the request, as the models of a real deletion do; below :data:`FEW` shadows the variance is that of all
images together, as Carlini et al. advise. It is a metric of a method and needs several models: ``megu benchmark`` has
them, ``megu evaluate`` has not.
"""

from __future__ import annotations

import numpy as np

from megu_dist.metrics.base import Numbers, Predictions
from megu_dist.metrics.mia_suite import rates

FEWEST = 3  # shadows: two to fit a normal to, one to attack
FEW = 64  # below, per-image variances are too noisy
TINY = 1e-6  # of a probability; also bounds φ
LEAST_STD = 1e-3


def sureness(p: Predictions) -> np.ndarray:
    """(N,) φ = log p_y − log(1 − p_y), float32."""
    own = p.probs[np.arange(len(p)), p.label].astype(np.float64).clip(TINY, 1 - TINY)
    return (np.log(own) - np.log1p(-own)).astype(np.float32)


def u_lira(unlearned: np.ndarray, retrained: np.ndarray) -> Numbers:
    """φ of S unlearned and of S retrained models, (S, N) each, pair s attacked with normals of the other pairs.

    Empty with fewer than :data:`FEWEST` pairs. Raises :class:`ValueError` for shapes that differ.
    """
    if unlearned.shape != retrained.shape:
        raise ValueError(f"u_lira: {unlearned.shape} unlearned and {retrained.shape} retrained values do not pair up")
    if len(unlearned) < FEWEST:
        return {}
    scores, truth = [], []
    for held in range(len(unlearned)):
        others = np.arange(len(unlearned)) != held
        inside, outside = _normal(unlearned[others]), _normal(retrained[others])
        for member, values in ((1, unlearned[held]), (0, retrained[held])):
            scores.append(_log_density(values, *inside) - _log_density(values, *outside))
            truth.append(np.full(len(values), member))
    auc, tpr = rates(np.concatenate(scores), np.concatenate(truth))
    return {"u_lira_auc": auc, "u_lira_tpr": tpr}


def _normal(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) means and standard deviations of (S, N) values."""
    mean = values.mean(0, dtype=np.float64)
    variance = values.var(0, ddof=1, dtype=np.float64)
    if len(values) < FEW:
        variance = np.full_like(variance, variance.mean())
    return mean, np.maximum(np.sqrt(variance), LEAST_STD)


def _log_density(values: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    return -((values - mean) ** 2) / (2 * std**2) - np.log(std)
