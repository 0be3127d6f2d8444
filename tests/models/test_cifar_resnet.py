"""The small residual network loads with transformers' Auto classes, whichever package is imported first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megu_dist.config.registry import lookup
from megu_dist.models.architectures.cifar_resnet import CifarResNet, CifarResNetSettings
from megu_dist.models.checkpoint import export

NAMES = ["cat", "dog", "frog"]
ORDERS = [
    "import megu_dist; from transformers import AutoModelForImageClassification as A",
    "from transformers import AutoModelForImageClassification as A; import megu_dist",
    "import transformers, megu_dist; A = transformers.AutoModelForImageClassification",
]


def network(**settings: object) -> CifarResNet:
    values = {"width": 4, "stage_blocks": [1, 2], "num_channels": 1, "image_size": 8} | settings
    return CifarResNet(CifarResNetSettings(name="cifar_resnet", **values))  # type: ignore[arg-type]


@pytest.mark.parametrize("order", range(len(ORDERS)))
def test_loads_in_a_fresh_process(order: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = network().build(NAMES).eval()
    model.stem[1].running_mean += 0.5  # buffers must travel, too
    export(model, None, network().preprocess(), tmp_path / "model", None)
    images = torch.rand(2, 1, 8, 8)
    torch.save({"images": images, "logits": model(pixel_values=images).logits.detach()}, tmp_path / "expected.pt")
    code = (
        f"{ORDERS[order]}\nimport sys, torch\n"
        "folder = sys.argv[1]; model = A.from_pretrained(folder + '/model').eval()\n"
        "saved = torch.load(folder + '/expected.pt')\n"
        "assert model.config.id2label == {0: 'cat', 1: 'dog', 2: 'frog'}, model.config.id2label\n"
        "torch.testing.assert_close(model(pixel_values=saved['images']).logits, saved['logits'])\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=120)


def test_shape_follows_the_settings() -> None:
    model = network(width=6, stage_blocks=[1, 1, 1], stem_stride=2, num_channels=3).build(NAMES)
    out = model(pixel_values=torch.rand(2, 3, 16, 16), labels=torch.tensor([0, 2]))
    assert out.logits.shape == (2, 3)
    assert out.loss.ndim == 0
    assert model.classifier.in_features == 24
    features = model.stages(model.stem(torch.rand(1, 3, 16, 16)))
    assert features.shape == (1, 24, 2, 2)  # halved by the stem and by two stages


def test_the_seed_decides_the_weights() -> None:
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        weights.append(network().build(NAMES).stem[0].weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert lookup("model", "cifar_resnet").target is CifarResNet


def test_narrow_stages_train_with_several_threads() -> None:
    """In a process of its own: the kernel of a strided 1×1 convolution once wrote past its memory and took it along."""
    code = (
        "import torch; torch.set_num_threads(2)\n"
        "from megu_dist.models.architectures.cifar_resnet import CifarResNet, CifarResNetSettings\n"
        "model = CifarResNet(CifarResNetSettings(name='cifar_resnet', width=8)).build(['a', 'b']).train()\n"
        "model = model.to(memory_format=torch.channels_last)\n"
        "for size in [64] * 5 + [29] * 5:\n"
        "    images = torch.rand(size, 3, 32, 32).contiguous(memory_format=torch.channels_last)\n"
        "    model(pixel_values=images).logits.square().mean().backward()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
