"""JPEG photographs much larger than the model's input are decoded at a smaller scale, and look the same."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from megu_dist.models.preprocess import Preprocess

PHOTOS = [Image.fromarray(pixels) for pixels in load_sample_images().images]  # 640 × 427


def jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def preprocess(side: int, channels: int = 3, **more: Any) -> Preprocess:
    return Preprocess(side, side, channels, (0.5,) * channels, (0.5,) * channels, **more)


def full(data: bytes, like: Preprocess) -> np.ndarray:
    """The same without the short cut: a PNG has none."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(data)).save(buffer, "PNG")
    return like.decode(buffer.getvalue(), "x")


@pytest.fixture
def decoded_sizes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Sizes at which images are decoded."""
    sizes: list[tuple[int, int]] = []
    fit = Preprocess._fit

    def spy(self: Preprocess, image: Image.Image, *rest: Any) -> Image.Image:
        sizes.append(image.size)
        return fit(self, image, *rest)

    monkeypatch.setattr(Preprocess, "_fit", spy)
    return sizes


@pytest.mark.parametrize("photo", PHOTOS)
@pytest.mark.parametrize("size", [(640, 427), (427, 640), (613, 409)])
@pytest.mark.parametrize("more", [{}, {"resize_edge": 36}, {"resample": 3}, {"channels": 1, "resize_edge": 40}])
def test_a_large_photograph_stays_close_to_its_full_decode(
    decoded_sizes: list[tuple[int, int]], photo: Image.Image, size: tuple[int, int], more: dict[str, Any]
) -> None:
    data, wanted = jpeg(photo.resize(size)), preprocess(32, **more)
    apart = np.abs(wanted.decode(data, "x").astype(int) - full(data, wanted))
    assert decoded_sizes[0][0] < size[0] / 3 + 1  # a quarter of the size
    assert apart.mean() < 0.6
    assert apart.max() <= 12  # of 255


def test_a_photograph_that_is_not_much_larger_is_decoded_whole(decoded_sizes: list[tuple[int, int]]) -> None:
    data, wanted = jpeg(PHOTOS[0]), preprocess(192, resize_edge=224)
    assert np.array_equal(wanted.decode(data, "x"), full(data, wanted))
    assert decoded_sizes[0] == (640, 427)


def test_nearest_resampling_picks_its_pixels_from_the_whole_image(decoded_sizes: list[tuple[int, int]]) -> None:
    data, wanted = jpeg(PHOTOS[1]), preprocess(16, resample=0)
    assert np.array_equal(wanted.decode(data, "x"), full(data, wanted))
    assert decoded_sizes[0] == (640, 427)
