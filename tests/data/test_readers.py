"""Decoding and augmentation of rows."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_samples import CLASSES, HF_IMAGE, parquet
from PIL import Image

from megu_dist.data.readers import Augment, ImageReader
from megu_dist.errors import UserError
from megu_dist.models.preprocess import Preprocess


def preprocess(channels: int = 3, height: int = 8, width: int = 8, **more: Any) -> Preprocess:
    return Preprocess(height, width, channels, (0.5,) * channels, (0.5,) * channels, **more)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["flip", "crop_flip"])
def test_augmentation_depends_on_the_row_alone(kind: str) -> None:
    rng = np.random.default_rng(0)
    rows = np.arange(64)
    images = rng.integers(0, 256, (64, 1, 8, 8), np.uint8)
    augment = Augment(kind, 3, 1)
    (whole,) = augment(rows, [images])
    pick = np.array([40, 3, 63, 5])
    (few,) = augment(rows[pick], [images[pick]])
    assert np.array_equal(few, whole[pick])
    (other,) = Augment(kind, 3, 2)(rows, [images])
    assert not np.array_equal(other, whole)
    assert whole.shape == images.shape
    assert whole.dtype == np.uint8


def test_flip_flips_about_half() -> None:
    images = np.broadcast_to(np.arange(8, dtype=np.uint8), (1000, 1, 8, 8)).copy()
    (moved,) = Augment("flip", 0, 0)(np.arange(1000), [images])
    flipped = (moved == images[..., ::-1]).all((1, 2, 3))
    assert (flipped | (moved == images).all((1, 2, 3))).all()
    assert 430 < flipped.sum() < 570


def test_crop_moves_all_of_a_rows_images_alike_within_the_padding() -> None:
    images = np.zeros((200, 1, 32, 32), np.uint8)
    images[:, :, 16, 16] = 255
    noise = np.stack([(images / 255 * 100).astype(np.int8)] * 2, 1)  # (N, draws, C, H, W)
    moved, moved_noise = Augment("crop_flip", 0, 0)(np.arange(200), [images, noise])
    assert moved_noise.shape == noise.shape
    where = np.argwhere(moved)
    assert len(where) == 200
    assert np.array_equal(np.argwhere(moved_noise[:, 0]), where)
    assert np.array_equal(np.argwhere(moved_noise[:, 1]), where)
    assert set(where[:, 2].tolist()) == set(range(12, 21))  # ±4 pixels at 32 × 32


def test_none_returns_the_images() -> None:
    images = np.zeros((2, 1, 4, 4), np.uint8)
    assert Augment("none", 0, 0)(np.arange(2), [images])[0] is images


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA", "1", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_is_decoded(mode: str, channels: int) -> None:
    gray = Image.fromarray(np.where(np.indices((8, 8)).sum(0) % 2, 255, 0).astype(np.uint8))
    data = encoded(gray.convert(mode), "TIFF" if mode == "CMYK" else "PNG")
    out = preprocess(channels).decode(data, "x")
    assert out.shape == (channels, 8, 8)
    assert out.dtype == np.uint8
    assert np.abs(out.astype(int) - np.asarray(gray).astype(int)).max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_keep_their_brightness(channels: int) -> None:
    values = (np.arange(64).reshape(8, 8) * 1024).astype(np.uint16)
    out = preprocess(channels).decode(encoded(Image.fromarray(values)), "x")
    assert np.abs(out[0].astype(int) - (values >> 8)).max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (3, 17), (17, 3), (200, 31), (9, 8)])
@pytest.mark.parametrize("edge", [None, 9])
def test_odd_sizes_are_fitted(size: tuple[int, int], edge: int | None) -> None:
    for kind in ("PNG", "JPEG"):
        out = preprocess(3, 8, 8, resize_edge=edge).decode(encoded(Image.new("RGB", size, (9, 99, 199)), kind), "x")
        assert out.shape == (3, 8, 8)
        assert np.abs(out.astype(int) - np.array([9, 99, 199]).reshape(3, 1, 1)).max() <= 3


def test_centre_crop_keeps_the_centre() -> None:
    wide = np.zeros((16, 48), np.uint8)
    wide[:, 16:32] = 200
    out = preprocess(1, 8, 8, resize_edge=8).decode(encoded(Image.fromarray(wide)), "x")
    assert out[0, :, 1:-1].min() > 190
    squashed = preprocess(1).decode(encoded(Image.fromarray(wide)), "x")
    assert squashed[0, :, 0].max() < 10


@pytest.mark.parametrize("data", [b"", b"no image at all", encoded(Image.new("L", (64, 64), 7))[:70]])
def test_an_unreadable_image_is_named(data: bytes) -> None:
    with pytest.raises(UserError, match="'train/00000003'"):
        preprocess().decode(data, "train/00000003")


def test_reader_returns_rows_in_the_asked_order(hf_folder: Path) -> None:
    reader = ImageReader(parquet(hf_folder), "train", preprocess(1, 4, 4), keep_id=True)
    out = reader({"row": np.array([12, 0, 5])})
    assert out["row"].tolist() == [12, 0, 5]
    assert out["image"][:, 0, 0, 0].tolist() == [12, 0, 5]
    assert out["label"].tolist() == [0, 0, 2]
    assert out["id"].tolist() == ["train/00000012", "train/00000000", "train/00000005"]
    assert "id" not in ImageReader(parquet(hf_folder), "train", preprocess(1, 4, 4))({"row": np.array([1])})


def test_large_images_are_decoded_alike_by_threads(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 140, 140), np.uint8)
    column = [{"bytes": encoded(Image.fromarray(image)), "path": None} for image in images]
    schema = pa.schema([("img", HF_IMAGE), ("label", pa.int64())])
    pq.write_table(pa.table({"img": column, "label": [0, 1, 2] * 2}, schema=schema), tmp_path / "train.parquet")
    out = ImageReader(parquet(tmp_path / "train.parquet"), "train", preprocess(1, 140, 140))({"row": np.arange(6)})
    assert np.array_equal(out["image"][:, 0], images)
    assert len(CLASSES) == 3
