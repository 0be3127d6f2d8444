"""SSD's importances against a loop over images, and its dampening in closed form."""

from __future__ import annotations

from pathlib import Path

import method_workers as workers
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from megu_dist.methods.importance import dampen, mean_importance, whole_importance


def test_fisher_is_the_mean_of_per_image_squares(tmp_path: Path) -> None:
    ctx = workers.context("ssd", tmp_path, 0, 1, [])
    model = workers.network().eval()
    rows, _ = workers.data()
    found = mean_importance(ctx, model, rows, cross_entropy, Tensor.square)
    part = rows.read(100 + np.arange(21))
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for image, label in zip(part["image"], part["label"], strict=True):
        model.zero_grad()
        logits = model(pixel_values=ctx.model_input(image[None].float() / 255)).logits
        cross_entropy(logits, label[None]).backward()
        for name, p in model.named_parameters():
            assert p.grad is not None
            expected[name] += p.grad.square() / 21
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-8)


def test_output_sensitivity_needs_no_labels(tmp_path: Path) -> None:
    ctx = workers.context("lfssd", tmp_path, 0, 1, [])
    model = workers.network().eval()
    rows, _ = workers.data()
    found = mean_importance(ctx, model, rows, lambda logits, _: logits.square().sum(), Tensor.abs)
    part = rows.read(100 + np.arange(21))
    logits = model(pixel_values=ctx.model_input(part["image"].float() / 255)).logits.detach()
    # ∂ Σ f_k² / ∂ b_k = 2 f_k
    torch.testing.assert_close(found["classifier.bias"], (2 * logits).abs().mean(0), rtol=1e-3, atol=1e-6)


def test_dampening() -> None:
    layer = nn.Linear(4, 1, bias=False)
    nn.init.ones_(layer.weight)
    forget = {"weight": torch.tensor([[1.0, 10.0, 30.0, 5.0]])}
    whole = {"weight": torch.tensor([[1.0, 2.0, 2.0, 1.0]])}
    moved = dampen(layer, forget, whole, select=4.0, strength=1.0)
    torch.testing.assert_close(layer.weight.data, torch.tensor([[1.0, 0.2, 2 / 30, 0.2]]))
    assert moved == 3
    nn.init.ones_(layer.weight)
    dampen(layer, forget, whole, select=4.0, strength=100.0)  # never enlarges a weight
    torch.testing.assert_close(layer.weight.data, torch.ones(1, 4))


def test_the_whole_is_weighted_by_size() -> None:
    one, other = {"w": torch.tensor([1.0])}, {"w": torch.tensor([4.0])}
    torch.testing.assert_close(whole_importance(one, other, 1, 3)["w"], torch.tensor([3.25]))
