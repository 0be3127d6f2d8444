"""The calibrated stop rule."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from megu_dist.engine.calibrate import LIMIT, Calibrator, share


def side(right: int, total: int = 10) -> tuple[Tensor, Tensor]:
    """Images whose only pixel says whether the model below gets them right; all labels are 0."""
    images = torch.zeros(total, 1, 1, 1, dtype=torch.uint8)
    images[:right] = 255
    return images, torch.zeros(total, dtype=torch.long)


def model(confidence: float = 3.0) -> object:
    def forward(pixels: Tensor) -> Tensor:
        assert pixels.max() <= 1  # pixel units
        sign = pixels.flatten() * 2 - 1
        return torch.stack([sign * confidence, -sign * confidence], 1)

    return forward


@pytest.mark.parametrize(("forget", "unseen", "stop"), [(10, 8, False), (9, 8, False), (8, 8, True), (2, 8, True)])
def test_stops_when_forget_images_look_unseen(forget: int, unseen: int, stop: bool) -> None:
    assert Calibrator(side(forget), side(unseen), 1).reached(model()) is stop  # type: ignore[arg-type]


def test_the_sides_may_differ_in_size_and_exceed_a_batch() -> None:
    assert not Calibrator(side(600, 600), side(8, 10), 1).reached(model())  # type: ignore[arg-type]
    assert Calibrator(side(300, 600), side(8, 10), 1).reached(model())  # type: ignore[arg-type]


def test_a_model_that_has_lost_its_balance_does_not_stop() -> None:
    """Forget images are unknown because everything is: unseen ones were right, and no longer are."""
    calibrator = Calibrator(side(4), side(5), 1)
    calibrator.begin(lambda pixels: torch.stack([torch.ones(len(pixels)), torch.zeros(len(pixels))], 1))
    assert calibrator.before == 1
    assert not calibrator.reached(model())  # type: ignore[arg-type]
    calibrator.begin(model())  # type: ignore[arg-type]
    assert calibrator.reached(model())  # type: ignore[arg-type]


def test_a_higher_loss_is_enough() -> None:
    """Accuracy is still higher, but the few mistakes are worse than those on unseen images."""

    def forward(pixels: Tensor) -> Tensor:
        x = pixels.flatten() * 255
        margin = torch.where(x == 255, 0.1, torch.where(x == 100, -9.0, -0.1))
        return torch.stack([margin, -margin], 1)

    forget = side(9)
    forget[0][9] = 100
    assert Calibrator(forget, side(8), 1).reached(forward)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 2, 50, 5000])
def test_every_worker_gets_as_many_rows(count: int, world: int) -> None:
    rows = np.arange(100, 100 + count)
    shares = [share(rows, 0, rank, world) for rank in range(world)]
    assert len({len(one) for one in shares}) == 1
    union = set(np.concatenate(shares).tolist())
    assert union <= set(rows.tolist())
    assert len(union) == min(count, LIMIT)
    assert sum(map(len, shares)) - len(union) < world
    alone = set(share(rows, 0, 0, 1).tolist())
    assert union == alone  # the same images, however many workers look
