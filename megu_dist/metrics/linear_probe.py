"""Linear probe: is the concept gone from the features, or only from the last layer? (Alain & Bengio 2016.)

A logistic regression learns all classes, the forgotten ones among them, from the frozen features before the last linear
layer, on a class-balanced sample of training images; ``probe_forget_acc`` is its accuracy on images of forgotten
classes that were never trained on. Far above the retrained model's: only the last layer has forgotten. Absent in the
random and ids scenarios, which forget no class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from megu_dist.config.registry import register
from megu_dist.metrics.base import Numbers, scope

if TYPE_CHECKING:
    from torch import Tensor, nn

    from megu_dist.metrics.deep import DeepJob


@register("metric", "linear_probe")
@scope("deep")
def linear_probe(job: DeepJob) -> Numbers:
    """Accuracy of a linear classifier on frozen features, on forgotten classes."""
    if not len(job.test_rows):
        return {}
    model = job.load(job.folder)
    train, test = ((features(job, model, x), y) for x, y in (job.images(job.probe_rows),
                                                             job.images(job.test_rows, job.test_split)))  # fmt: skip
    return {"probe_forget_acc": probe(*train, *test, job.seed)}


def features(job: DeepJob, model: nn.Module, images: Tensor) -> np.ndarray:
    """(N, D) input of the last linear layer."""
    from megu_dist.models.layers import PENULTIMATE, recorded

    parts = []
    with recorded(model, 1) as found:
        for part in images.split(job.settings.batch_size):
            found.clear()
            job.logits(model, part)
            parts.append(found[PENULTIMATE].cpu().numpy())
    return np.concatenate(parts)


def probe(x: np.ndarray, y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray, seed: int) -> float:
    """Accuracy on the test features of a logistic regression on the others."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model: Any = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500, random_state=seed))
    return float(model.fit(x, y).score(test_x, test_y))
