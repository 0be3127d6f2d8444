"""Fragment-Align noise on a small random network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from megu_dist.perturb.noise import fragment_align, mix, quantise

EPSILON = 8 / 255


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 5),
    ]
    return nn.Sequential(*layers).requires_grad_(False)


@pytest.fixture(scope="module")
def images() -> Tensor:
    pixels = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    pixels[0] = 0
    pixels[1] = 1
    return pixels


@pytest.fixture(scope="module")
def target() -> Tensor:
    return torch.arange(16) % 5


@pytest.mark.parametrize("steps", [1, 3, 10])
@pytest.mark.parametrize("towards", [True, False])
def test_moves_the_loss_of_every_image_within_the_bounds(
    network: nn.Module, images: Tensor, target: Tensor, towards: bool, steps: int
) -> None:
    before = images.clone()
    noise = fragment_align(network, images, target, towards, EPSILON, steps)
    assert torch.equal(images, before)
    assert noise.abs().max() <= EPSILON + 1e-6
    moved = images + noise
    assert moved.min() >= 0
    assert moved.max() <= 1
    change = cross_entropy(network(moved), target, reduction="none") - cross_entropy(
        network(images), target, reduction="none"
    )
    assert ((change < 0) if towards else (change > 0)).all()


def test_more_steps_reach_further(network: nn.Module, images: Tensor, target: Tensor) -> None:
    def loss(steps: int) -> float:
        noise = fragment_align(network, images, target, True, EPSILON, steps)
        return float(cross_entropy(network(images + noise), target))

    assert loss(5) < loss(1) + 1e-6


def test_images_do_not_depend_on_their_batch(network: nn.Module, images: Tensor, target: Tensor) -> None:
    whole = fragment_align(network, images, target, True, EPSILON, 3)
    alone = torch.cat(
        [fragment_align(network, images[i : i + 1], target[i : i + 1], True, EPSILON, 3) for i in range(16)]
    )
    assert ((whole - alone).abs() > 1e-6).float().mean() < 0.01  # a gradient of nearly zero may change its sign
    assert torch.equal(fragment_align(network, images, target, True, EPSILON, 3), whole)


def test_noise_towards_a_label_raises_its_probability(network: nn.Module, images: Tensor, target: Tensor) -> None:
    noise = fragment_align(network, images, target, True, EPSILON, 3)
    before, after = (network(x).softmax(1)[torch.arange(16), target] for x in (images, images + noise))
    assert (after > before).all()


def test_works_without_gradients_enabled(network: nn.Module, images: Tensor, target: Tensor) -> None:
    expected = fragment_align(network, images, target, True, EPSILON, 2)
    with torch.no_grad():
        assert torch.equal(fragment_align(network, images, target, True, EPSILON, 2), expected)


def test_quantised_noise_is_within_half_a_step(images: Tensor) -> None:
    noise = (images - 0.5) * 2 * EPSILON
    small = quantise(noise, EPSILON)
    assert small.dtype == torch.int8
    assert small.min() >= -127
    assert (small.float() * EPSILON / 127 - noise).abs().max() <= 0.5 * EPSILON / 127 + 1e-7
    assert quantise(torch.tensor([9.0, -9.0]), EPSILON).tolist() == [127, -127]


def test_mix(images: Tensor) -> None:
    positive = torch.full_like(images, 127).to(torch.int8)
    negative = torch.full_like(images, -63).to(torch.int8)
    scale = EPSILON / 127
    assert mix(images, positive, negative, scale, 0, 0) is images
    expected = (images + 0.5 * EPSILON - 0.25 * 63 * scale).clamp(0, 1)
    torch.testing.assert_close(mix(images, positive, negative, scale, 0.5, 0.25), expected)
    only_negative = mix(images, positive, negative, scale, 0, 1)
    torch.testing.assert_close(only_negative, (images - 63 * scale).clamp(0, 1))
    assert only_negative[0].max() == 0  # black stays black
