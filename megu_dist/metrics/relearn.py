"""Relearn time: epochs of fine-tuning on D_f until it is known again (Golatkar et al. 2020; Tarun et al. 2023).

``relearn_epochs`` counts epochs (in quarters) of SGD on forgotten training images alone, until accuracy on them is 0.9
times the original model's; ``evaluate.relearn_epochs`` where it is not reached, and then ``relearn_reached`` is 0.
Compare with the retrained model's: fewer epochs mean that knowledge is left. Deviates: at most 2,048 images, and a
fixed learning rate ``evaluate.relearn_lr``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from megu_dist.config.registry import register
from megu_dist.metrics.base import Numbers, scope

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from megu_dist.metrics.deep import DeepJob

SHARE = 0.9
BATCH = 128
LOOKS = 4  # in an epoch


@register("metric", "relearn")
@scope("deep")
def relearn(job: DeepJob) -> Numbers:
    """Epochs of fine-tuning on forgotten images until they are known again."""
    import torch

    images, _ = job.images(job.some(job.forget_rows))
    # The model's own labels: coarse ones where fine classes are forgotten.
    labels = torch.from_numpy(job.source.gather("train", job.some(job.forget_rows))["label"].to_numpy().copy())
    goal = SHARE * accuracy(job, job.load(job.original), images, labels)
    model = job.load(job.folder)
    optimizer = torch.optim.SGD(model.parameters(), lr=job.settings.relearn_lr, momentum=0.9)
    order = torch.Generator().manual_seed(job.seed)
    steps = max(1, len(images) // BATCH)
    looks = min(LOOKS, steps)
    epochs = 0.0
    while accuracy(job, model, images, labels) < goal:
        if epochs >= job.settings.relearn_epochs:
            return {"relearn_epochs": float(job.settings.relearn_epochs), "relearn_reached": 0.0}
        look = round((epochs % 1) * looks)
        if look == 0:
            batches = torch.randperm(len(images), generator=order).tensor_split(steps)
        for chosen in batches[look * steps // looks : (look + 1) * steps // looks]:
            step(job, model, optimizer, images[chosen], labels[chosen])
        epochs = round(epochs * looks + 1) / looks
    return {"relearn_epochs": epochs, "relearn_reached": 1.0}


def step(job: DeepJob, model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
    """One step of cross-entropy on true labels."""
    from torch.nn.functional import cross_entropy

    model.train()
    loss = cross_entropy(model(pixel_values=job.inputs(images)).logits.float(), labels.to(job.device))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    model.eval()


def accuracy(job: DeepJob, model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of the images that are given their label."""
    return float((job.logits(model, images).argmax(1).cpu() == labels).float().mean())
