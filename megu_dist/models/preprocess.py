"""Image preprocessing that travels with a checkpoint: read from and written to ``preprocessor_config.json``.

Images stay uint8 until they reach the model's device; only there are they scaled to [0, 1] and normalised, so that
noise in pixel units can be added first and a quarter of the bytes move.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from megu_dist.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

FILE = "preprocessor_config.json"
DRAFT = 2  # a JPEG is decoded at no less than this many times the size that it is resized to
CROP_PERCENT = 0.875  # ConvNextImageProcessor's default share kept by the centre crop below 384 pixels


@dataclass(frozen=True)
class Preprocess:
    """Size (pixels), number of channels, normalisation; ``resize_edge`` is the shorter edge before a centre crop."""

    height: int
    width: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: int = 2  # PIL's bilinear
    resize_edge: int | None = None

    @property
    def image_bytes(self) -> int:
        """Bytes of a decoded image."""
        return int(np.prod(self.shape))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a decoded image."""
        return self.channels, self.height, self.width

    def decode(self, data: bytes, name: str) -> np.ndarray:
        """Encoded image → uint8 (C, H, W). Raises :class:`UserError` that names an image that cannot be read."""
        try:
            image: Image.Image = Image.open(io.BytesIO(data))
            mode = "L" if self.channels == 1 else "RGB"
            size, box = self._resized(*image.size), (0.0, 0.0, *map(float, image.size))
            if image.format == "JPEG" and self.resample != Image.Resampling.NEAREST:
                # Decodes a photograph at 1/2, 1/4 or 1/8 of its size where it is to shrink by more than that.
                box = (image.draft(None, (DRAFT * size[0], DRAFT * size[1])) or (None, box))[1]
            if image.mode.startswith("I"):  # 16 bits a pixel; Pillow's own conversion clips instead of scaling
                image = Image.fromarray((np.asarray(image, np.uint32) >> 8).clip(0, 255).astype(np.uint8))
            if image.mode != mode:
                image = image.convert(mode)
            image.load()
        except UnidentifiedImageError:  # whose text tells an address in memory
            raise UserError(f"cannot read image {name!r}: no known image format") from None
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(f"cannot read image {name!r}: {error or type(error).__name__}") from None
        pixels = np.asarray(self._fit(image, size, box))
        return pixels[None] if self.channels == 1 else pixels.transpose(2, 0, 1)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height that an image has after the resize and before the crop."""
        if self.resize_edge is None:
            return self.width, self.height
        short = min(width, height)  # the longer edge is cut off, not rounded, as transformers does
        return max(self.width, width * self.resize_edge // short), max(self.height, height * self.resize_edge // short)

    def _fit(self, image: Image.Image, size: tuple[int, int], box: tuple[float, ...]) -> Image.Image:
        """Resizes what ``box`` holds to ``size``, and crops: only the part that stays is made."""
        left, top = (size[0] - self.width) // 2, (size[1] - self.height) // 2
        if image.size == size:
            return image.crop((left, top, left + self.width, top + self.height)) if left or top else image
        across, down = (box[2] - box[0]) / size[0], (box[3] - box[1]) / size[1]  # original pixels to one that is made
        x, y = box[0] + left * across, box[1] + top * down
        right, bottom = min(x + self.width * across, box[2]), min(y + self.height * down, box[3])  # rounding adds some
        return image.resize((self.width, self.height), Image.Resampling(self.resample), (x, y, right, bottom))

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixel units [0, 1], (N, C, H, W) → what the model expects."""
        import torch

        mean = torch.tensor(self.mean, device=pixels.device, dtype=pixels.dtype).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=pixels.device, dtype=pixels.dtype).view(1, -1, 1, 1)
        return (pixels - mean) / std

    def save(self, folder: Path) -> None:
        """Writes a file that ``AutoImageProcessor`` reads, too."""
        config: dict[str, Any] = {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "do_rescale": True,
            "do_normalize": True,
            "size": {"height": self.height, "width": self.width},
            "resample": self.resample,
            "rescale_factor": 1 / 255,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }
        (folder / FILE).write_text(json.dumps(config, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path, channels: int, image_size: int | None) -> Preprocess:
        """From a checkpoint folder. ``channels`` and ``image_size`` are the model's own, which win or must agree."""
        path = folder / FILE
        if not path.is_file():
            raise UserError(
                f"{folder} has no {FILE}: save the model's image processor beside it (processor.save_pretrained), "
                "so that size, mean and std are known"
            )
        config = json.loads(path.read_text())
        height, width, edge = _geometry(config, path)
        if image_size is not None and (height, width) != (image_size, image_size):
            raise UserError(
                f"{path} resizes to {height}×{width}, but the model takes {image_size}×{image_size}; mend its "
                "size, or save the right processor"
            )
        normalise = config.get("do_normalize", True)
        mean = _per_channel(config.get("image_mean", 0.5) if normalise else 0.0, channels, "image_mean", path)
        std = _per_channel(config.get("image_std", 0.5) if normalise else 1.0, channels, "image_std", path)
        return cls(height, width, channels, mean, std, _resample(config), edge)


def _geometry(config: dict[str, Any], path: Path) -> tuple[int, int, int | None]:
    """Height, width, shorter edge before the crop, from the several forms that transformers' processors use."""
    size, crop = config.get("size"), config.get("crop_size")
    if isinstance(size, int):
        size = {"height": size, "width": size}
    if isinstance(crop, int):
        crop = {"height": crop, "width": crop}
    if not isinstance(size, dict):
        raise UserError(f'{path} gives no image size: put in "size": {{"height": …, "width": …}}')
    if "shortest_edge" not in size:
        if "height" not in size or "width" not in size:
            raise UserError(f"{path}: size {size} is not supported; give height and width, or shortest_edge")
        return int(size["height"]), int(size["width"]), None
    edge = int(size["shortest_edge"])
    if crop and config.get("do_center_crop", True):
        return int(crop["height"]), int(crop["width"]), edge
    # ConvNext's processor (ResNet, ConvNeXt, Swin checkpoints): below 384 pixels resize to edge / crop_pct, then crop.
    enlarged = int(edge / config.get("crop_pct", CROP_PERCENT)) if edge < 384 else None
    return edge, edge, enlarged


def _resample(config: dict[str, Any]) -> int:
    value = config.get("resample")
    return 2 if value is None else int(value)  # 0 is PIL's nearest


def _per_channel(value: Any, channels: int, key: str, path: Path) -> tuple[float, ...]:
    values = [float(v) for v in value] if isinstance(value, list | tuple) else [float(value)] * channels
    if len(values) != channels:
        raise UserError(
            f"{path}: {key} has {len(values)} values, but the model takes {channels}-channel images; give "
            f"{channels}, or one for all"
        )
    return tuple(values)
