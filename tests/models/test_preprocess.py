"""Preprocessing agrees with transformers' own image processors, and travels."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from megu_dist.errors import UserError
from megu_dist.models.preprocess import FILE, Preprocess

SIZES = [(64, 48), (33, 57), (40, 40), (32, 32), (20, 90), (301, 200)]


def smooth(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """A picture without sharp edges, so that a fraction of a pixel shows as a small difference only."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def ours(folder: Path, image: Image.Image, channels: int = 3) -> torch.Tensor:
    preprocess = Preprocess.load(folder, channels, None)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    pixels = torch.from_numpy(preprocess.decode(buffer.getvalue(), "x")).float() / 255
    return preprocess.normalise(pixels[None])


def processors() -> dict[str, Any]:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    return {
        "vit": ViTImageProcessorPil(size={"height": 32, "width": 32}),
        "vit-bicubic": ViTImageProcessorPil(size={"height": 24, "width": 24}, resample=3, image_mean=[0.1, 0.2, 0.3]),
        "vit-plain": ViTImageProcessorPil(size={"height": 32, "width": 32}, do_normalize=False),
        "convnext": ConvNextImageProcessorPil(size={"shortest_edge": 32}),
        "convnext-pct": ConvNextImageProcessorPil(size={"shortest_edge": 28}, crop_pct=0.9),
        "clip": CLIPImageProcessorPil(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}),
        "clip-wide": CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 24, "width": 32}),
    }


NAMES = ["vit", "vit-bicubic", "vit-plain", "convnext", "convnext-pct", "clip", "clip-wide"]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_processor_of_transformers(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    processor = processors()[name]
    processor.save_pretrained(tmp_path)
    image = smooth(size)
    expected = processor(image, return_tensors="pt")["pixel_values"]
    found = ours(tmp_path, image)
    assert found.shape == expected.shape
    scale = 255 * min(Preprocess.load(tmp_path, 3, None).std)
    assert ((found - expected).abs() * scale).max() <= 2.5  # of 255: rounding, no shift


@pytest.mark.parametrize("resample", [0, 1, 2, 3])
@pytest.mark.parametrize("size", [(57, 31), (31, 57), (40, 40), (300, 41)])
def test_the_part_that_stays_is_that_of_the_whole_resized_image(size: tuple[int, int], resample: int) -> None:
    image = smooth(size)
    preprocess = Preprocess(32, 24, 3, (0.5,) * 3, (0.5,) * 3, resample, 40)
    width, height = (max(edge, side * 40 // min(size)) for edge, side in zip((24, 32), size, strict=True))
    whole = image.resize((width, height), Image.Resampling(resample))
    left, top = (width - 24) // 2, (height - 32) // 2
    expected = np.asarray(whole.crop((left, top, left + 24, top + 32)), int).transpose(2, 0, 1)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    difference = np.abs(preprocess.decode(buffer.getvalue(), "x").astype(int) - expected)
    assert difference.max() <= (0 if resample == 0 else 1)  # Pillow may round between the two directions, or not


def test_what_is_saved_is_loaded_by_both(tmp_path: Path) -> None:
    from transformers import AutoImageProcessor

    preprocess = Preprocess(24, 24, 3, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    preprocess.save(tmp_path)
    assert Preprocess.load(tmp_path, 3, 24) == preprocess
    image = smooth((31, 57))
    expected = AutoImageProcessor.from_pretrained(tmp_path)(image, return_tensors="pt")["pixel_values"]
    assert (ours(tmp_path, image) - expected).abs().max() < 2.5 / 255 / 0.4


def write(folder: Path, **config: Any) -> None:
    (folder / FILE).write_text(json.dumps(config))


def test_gray(tmp_path: Path) -> None:
    write(tmp_path, size={"height": 8, "width": 6}, image_mean=[0.5], image_std=0.25)
    preprocess = Preprocess.load(tmp_path, 1, None)
    assert preprocess.shape == (1, 8, 6)
    assert (preprocess.mean, preprocess.std) == ((0.5,), (0.25,))
    out = ours(tmp_path, Image.new("RGB", (20, 20), (255, 255, 255)), channels=1)
    assert out.shape == (1, 1, 8, 6)
    torch.testing.assert_close(out, torch.full_like(out, 2.0))


def test_nearest_resampling_is_kept(tmp_path: Path) -> None:
    write(tmp_path, size=8, resample=0)
    assert Preprocess.load(tmp_path, 3, None).resample == 0


@pytest.mark.parametrize(
    ("config", "channels", "size", "match"),
    [
        ({}, 3, None, "no image size"),
        ({"size": {"longest_edge": 9}}, 3, None, "not supported"),
        ({"size": 32}, 3, 64, "resizes to 32×32.*takes 64×64"),
        ({"size": 32, "image_mean": [0.5, 0.5, 0.5]}, 1, None, "image_mean has 3 values.*1-channel"),
    ],
)
def test_what_does_not_fit_is_refused(
    config: dict[str, Any], channels: int, size: int | None, match: str, tmp_path: Path
) -> None:
    write(tmp_path, **config)
    with pytest.raises(UserError, match=match):
        Preprocess.load(tmp_path, channels, size)


def test_a_folder_without_preprocessing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"no {FILE}.*save_pretrained"):
        Preprocess.load(tmp_path, 3, None)
