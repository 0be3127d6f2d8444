"""Batch normalisation over the batches of all workers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gloo_workers import CPU, LAYERS, network
from torch import nn

from megu_dist.engine import batch_norm


@pytest.mark.parametrize("name", LAYERS)
def test_two_uneven_ranks_equal_one_process(
    name: str, two_ranks: list[dict[str, Any]], one_process: dict[str, Any]
) -> None:
    expected = one_process["bn"][name]
    for rank, ranks in enumerate(two_ranks):
        found = ranks["bn"][name]
        assert set(found) == set(expected)
        for key in ("out", "x_grad"):
            torch.testing.assert_close(found[key], expected[key][rank::2], rtol=1e-4, atol=1e-4)
        for key in set(expected) - {"out", "x_grad"}:
            torch.testing.assert_close(found[key], expected[key], rtol=1e-4, atol=1e-4)


def test_frozen_statistics_stay() -> None:
    model = batch_norm.apply(network(), "frozen", 1, CPU)
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model(pixel_values=torch.rand(4, 1, 8, 8)).logits.sum().backward()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.stem[1].weight.grad is not None  # the affine parameters still learn
    assert model.training


def test_one_worker_keeps_torchs_own() -> None:
    for policy in ("sync", "local"):
        model = batch_norm.apply(network().train(), policy, 1, CPU)
        assert all("forward" not in vars(layer) for layer in batch_norm.layers(model))
    assert batch_norm.layers(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))) == []
