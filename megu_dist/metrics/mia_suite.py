"""Membership attacks on forgotten training images: can they be told from images that were never trained on?

Each attack is a logistic regression on one number per image: confidence (largest probability), margin (log-probability
of the label minus that of the best other class), loss, or entropy (Yeom et al. 2018; Song & Mittal 2021). Members are
``forget_train``; the others are test images of the same kind, ``forget_test`` where there are any, else
``retain_test``. Both sides are cut to equal size by a seed. ``mia_<attack>_auc`` (1/2: cannot be told) and
``mia_<attack>_tpr`` (true-positive rate at 1 % false positives; 0.01: cannot be told, Carlini et al. 2022) come from
scores out of fold (stratified, 5 folds). Absent with fewer than :data:`FEWEST` images on a side.
"""

from __future__ import annotations

import numpy as np

from megu_dist.config.registry import register
from megu_dist.metrics.base import Numbers, Parts, Predictions, by_rows, scope

FEWEST = 20
FOLDS = 5
FALSE_POSITIVES = 0.01
TINY = 1e-12


@register("metric", "mia_suite")
@scope("model")
def mia_suite(parts: Parts, seed: int) -> Numbers:
    """Attacks on confidence, margin, loss and entropy: AUC and true-positive rate at 1 % false positives."""
    members = parts.get("forget_train")
    others = parts.get("forget_test") or parts.get("retain_test")
    if members is None or others is None or min(len(members), len(others)) < FEWEST:
        return {}
    size = min(len(members), len(others))
    rng = np.random.default_rng([seed, 7])
    chosen = [rng.permutation(len(side))[:size] for side in (members, others)]
    found = {}
    for name, (inside, outside) in {n: (f(members), f(others)) for n, f in FEATURES.items()}.items():
        scores, truth = attack(inside[chosen[0]], outside[chosen[1]], seed)
        found[f"mia_{name}_auc"], found[f"mia_{name}_tpr"] = rates(scores, truth)
    return found


def confidence(p: Predictions) -> np.ndarray:
    """(N,) largest probability."""
    return by_rows(lambda probs: probs.max(1), p.probs)


def margin(p: Predictions) -> np.ndarray:
    """(N,) log-probability of the label minus that of the best other class."""
    return by_rows(_margin, p.probs, p.label)


def _margin(probs: np.ndarray, label: np.ndarray) -> np.ndarray:
    logs = np.log(probs.astype(np.float64) + TINY)
    rows = np.arange(len(label))
    own = logs[rows, label].copy()
    logs[rows, label] = -np.inf
    return own - logs.max(1)


FEATURES = {"confidence": confidence, "margin": margin, "loss": lambda p: p.loss, "entropy": lambda p: p.entropy}


def attack(inside: np.ndarray, outside: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Out-of-fold scores (2N,) that an image is a member, and whether it is one."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x = np.concatenate([inside, outside]).astype(np.float64)[:, None]
    y = np.repeat([1, 0], [len(inside), len(outside)])
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    model = make_pipeline(StandardScaler(), LogisticRegression())
    return cross_val_predict(model, x, y, cv=folds, method="decision_function"), y


def rates(scores: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """AUC, and the true-positive rate at :data:`FALSE_POSITIVES` (the best threshold that keeps within it)."""
    from sklearn.metrics import roc_auc_score, roc_curve

    false, true, _ = roc_curve(truth, scores)
    return float(roc_auc_score(truth, scores)), float(true[false <= FALSE_POSITIVES].max())
