"""Zero-retrain forgetting (Chundawat et al. 2023): how much a model behaves like one that never learnt, on forgotten images.

``zrf`` = 1 - mean JS divergence, in bits, between the model's and an incompetent teacher's predictions on forgotten
training images; the teacher is the original architecture with random weights of ``seed.evaluate``. 1: as ignorant as
the teacher. Compare with the retrained model's value: a model may know less than one that never saw the images.
Deviates: at most 2,048 images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from megu_dist.config.registry import register
from megu_dist.metrics.base import Numbers, scope

if TYPE_CHECKING:
    from torch import Tensor

    from megu_dist.metrics.deep import DeepJob


@register("metric", "zrf")
@scope("deep")
def zrf(job: DeepJob) -> Numbers:
    """Likeness to a randomly initialised model on forgotten images."""
    import torch

    images, _ = job.images(job.some(job.forget_rows))
    model = job.load(job.original)
    torch.manual_seed(job.seed)
    teacher = type(model)(model.config).eval().to(job.device)
    return {"zrf": 1 - float(js_bits(job.logits(job.load(job.folder), images), job.logits(teacher, images)).mean())}


def js_bits(a: Tensor, b: Tensor) -> Tensor:
    """(N,) Jensen-Shannon divergence of two sets of logits (N, C), in bits, 0 … 1."""
    import math

    from torch.nn.functional import log_softmax

    p, q = (log_softmax(x.double(), 1) for x in (a, b))
    middle = ((p.exp() + q.exp()) / 2).clamp_min(1e-300).log()
    return sum((x.exp() * (x - middle)).sum(1) for x in (p, q)) / (2 * math.log(2))  # type: ignore[return-value]
