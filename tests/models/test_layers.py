"""Which layers are read, and how their outputs become one vector per image."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from megu_dist.models.architectures.cifar_resnet import CifarResNet, CifarResNetSettings
from megu_dist.models.layers import PENULTIMATE, blocks, head, pool, pool_quarters, recorded

NAMES = ["a", "b", "c"]


def cifar() -> torch.nn.Module:
    settings = CifarResNetSettings(name="cifar_resnet", width=4, stage_blocks=[1, 2], num_channels=3, image_size=16)
    return CifarResNet(settings).build(NAMES)


def vit() -> torch.nn.Module:
    config = ViTConfig(hidden_size=16, num_hidden_layers=5, num_attention_heads=2, intermediate_size=32, image_size=16,
                       patch_size=8, num_labels=3)  # fmt: skip
    return ViTForImageClassification(config)


def swin() -> torch.nn.Module:
    config = SwinConfig(image_size=16, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4,
                        num_labels=3)  # fmt: skip
    return SwinForImageClassification(config)


def resnet() -> torch.nn.Module:
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)
    return ResNetForImageClassification(config)


def convnext() -> torch.nn.Module:
    return ConvNextForImageClassification(
        ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, num_labels=3)
    )


@pytest.mark.parametrize(
    ("make", "widths"),
    [(cifar, [4, 8, 8]), (vit, [16] * 5), (swin, [16, 16]), (resnet, [8, 16]), (convnext, [8, 16])],
)
def test_every_block_and_the_last_feature(make: object, widths: list[int]) -> None:
    model = make().eval()  # type: ignore[operator]
    with torch.no_grad(), recorded(model, 12) as found:
        logits = model(pixel_values=torch.rand(2, 3, 16, 16)).logits
    layers = {name: tuple(values.shape) for name, values in found.items()}
    assert list(layers) == [*blocks(model, 12), PENULTIMATE]
    assert [shape[1] for shape in layers.values()] == [*widths, widths[-1]]
    assert all(shape[0] == 2 for shape in layers.values())
    last = head(model)
    assert last is not None
    torch.testing.assert_close(last(found[PENULTIMATE]), logits)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_many_blocks_are_thinned_evenly() -> None:
    names = list(blocks(vit(), 3))
    assert len(names) == 3
    assert [name.rsplit(".", 1)[1] for name in names] == ["0", "2", "4"]
    assert [name.rsplit(".", 1)[1] for name in blocks(vit(), 1)] == ["4"]


def test_pooling() -> None:
    grid, tokens = torch.rand(2, 3, 4, 5), torch.rand(2, 7, 3)
    torch.testing.assert_close(pool(grid), grid.mean((2, 3)))
    torch.testing.assert_close(pool((tokens, None)), tokens.mean(1))
    assert pool(torch.rand(3)) is None
    assert pool("nothing") is None


def test_quarters_of_the_image() -> None:
    grid = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert pool_quarters(grid).tolist() == [[2.5, 4.5, 10.5, 12.5]]  # type: ignore[union-attr]
    tokens = torch.cat([torch.full((1, 1, 1), 99.0), grid.flatten(2).transpose(1, 2)], 1)  # a class token before them
    assert pool_quarters((tokens,)).tolist() == [[2.5, 4.5, 10.5, 12.5]]  # type: ignore[union-attr]
    assert pool_quarters(torch.rand(2, 3)).shape == (2, 3)  # type: ignore[union-attr]
    assert pool_quarters(torch.rand(2, 3, 1, 1)).shape == (2, 3)  # type: ignore[union-attr]
    assert pool_quarters("no feature") is None
