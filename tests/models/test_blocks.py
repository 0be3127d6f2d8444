"""The blocks of a classifier are found in any architecture, and every parameter has its place among them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from megu_dist.models.architectures.cifar_resnet import CifarResNet, CifarResNetSettings
from megu_dist.models.architectures.transformers import TransformersModel, TransformersSettings
from megu_dist.models.blocks import blocks, depths, stages

VIT = {"num_hidden_layers": 3, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "patch_size": 4}
CONFIGS: dict[str, dict[str, Any]] = {
    "vit": VIT,
    "swin": {"embed_dim": 8, "depths": [1, 2], "num_heads": [2, 2], "window_size": 2, "patch_size": 2},
    "convnext": {"depths": [1, 2], "hidden_sizes": [8, 16], "num_stages": 2},
    "resnet": {"depths": [1, 2], "hidden_sizes": [8, 16], "embedding_size": 8},
}
HEADS = {"resnet": "classifier.1", "cifar_resnet": "classifier"}
EXTRA = {  # beside the blocks of a stage: where the image shrinks
    "swin": {"swin.encoder.layers.0.downsample.reduction.weight": 1},
    "convnext": {"convnext.encoder.stages.1.downsampling_layer.1.weight": 2},
}


def build(name: str) -> nn.Module:
    """A small network of an architecture, without weights."""
    with torch.device("meta"):
        if name == "cifar_resnet":
            return CifarResNet(CifarResNetSettings(name=name, width=4, stage_blocks=[1, 2])).build(["a", "b", "c"])
        settings = TransformersSettings(name="transformers", model_type=name, image_size=16, config=CONFIGS[name])
        return TransformersModel(settings).build(["a", "b", "c"])


@pytest.mark.parametrize("name", [*CONFIGS, "cifar_resnet"])
def test_three_blocks_and_what_surrounds_them(name: str) -> None:
    model = build(name)
    found, depth = blocks(model), depths(model)
    assert len(found) == 3
    assert len({type(block) for _, block in found}) == 1
    assert set(depth) == {key for key, _ in model.named_parameters()}
    for place, (prefix, block) in enumerate(found, 1):
        assert {depth[f"{prefix}.{key}"] for key, _ in block.named_parameters()} == {place}
    assert list(depth.values()) == sorted(depth.values())  # from the image to the labels
    assert min(depth.values()) == 0
    head = HEADS.get(name, "classifier")
    assert (depth[f"{head}.weight"], depth[f"{head}.bias"]) == (4, 4)
    for key, place in EXTRA.get(name, {}).items():
        assert depth[key] == place


def test_a_model_that_is_no_chain_has_no_blocks() -> None:
    model = nn.Linear(3, 2)
    assert blocks(model) == stages(model) == []
    assert set(depths(model).values()) == {0}
