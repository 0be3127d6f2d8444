"""Photographs at 224 pixels: Ray Data tasks against torch's DataLoader, with as many processes.

Both sides read the same JPEG bytes from Parquet or memory, decode, resize the shorter edge to 256, cut out 224 pixels,
flip, and hand uint8 batches of 128 to the consumer. What counts is the ratio; run by ``make bench``.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from bench_stages import compare
from PIL import Image

from megu_dist.config.compose import load
from megu_dist.data import stream
from megu_dist.data.open import open_source
from megu_dist.data.readers import Augment, ImageReader
from megu_dist.engine.batch import _tensor
from megu_dist.models.preprocess import Preprocess
from megu_dist.raysession import ray_session

pytestmark = pytest.mark.perf
IMAGES, BATCH = 9000, 128
SIZE = (500, 375)  # as most of ImageNet's
PREPROCESS = Preprocess(224, 224, 3, (0.5,) * 3, (0.5,) * 3, 2, 256)


class Plain(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """What a script without torchvision does for each image."""

    def __init__(self, images: list[bytes]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        image = Image.open(io.BytesIO(self.images[number])).convert("RGB")
        scale = 256 / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
        left, top = (image.width - 224) // 2, (image.height - 224) // 2
        pixels = np.asarray(image.crop((left, top, left + 224, top + 224))).transpose(2, 0, 1)
        if torch.rand(()) < 0.5:
            pixels = pixels[..., ::-1]
        return torch.from_numpy(np.ascontiguousarray(pixels)), 0


def photographs(count: int) -> list[bytes]:
    """JPEG files with the detail of a photograph: about 50 kB each at quality 90."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(50):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize(SIZE, Image.Resampling.BICUBIC)
        grain = rng.normal(0, 12, (SIZE[1], SIZE[0], 1))
        pixels = (np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
        found.append(buffer.getvalue())
    return [found[number % len(found)] for number in range(count)]


def test_ingest_of_photographs(tmp_path: Path) -> None:
    """Images per second of the whole machine, one process per core on either side."""
    images, cores = photographs(IMAGES), len(os.sched_getaffinity(0))
    table = pa.table({"image": images, "label": np.arange(IMAGES) % 10})
    pq.write_table(table, tmp_path / "train.parquet", row_group_size=250)
    pq.write_table(table.slice(0, 10), tmp_path / "test.parquet")
    settings = load(["data=parquet", f"data.path={tmp_path}"]).settings
    loader = torch.utils.data.DataLoader(
        Plain(images), BATCH, shuffle=True, num_workers=cores, multiprocessing_context="spawn", persistent_workers=True
    )
    with ray_session(settings):
        source = open_source(settings.data)

        def ours() -> int:
            reader = ImageReader(source, "train", PREPROCESS, Augment("flip", 0, 0))
            rows = stream.task_rows(int(np.prod(PREPROCESS.shape)))
            blocks = stream.blocks(np.arange(IMAGES), reader, rows, prefetch=2)
            sizes = [BATCH] * (IMAGES // BATCH) + [IMAGES % BATCH]
            steps: Any = stream.ReadAhead(stream.in_steps(blocks, sizes))
            return sum(len(_tensor(step["image"], torch.device("cpu"))) for step in steps)

        def bare() -> int:
            return sum(len(pixels) for pixels, _ in loader)

        assert compare("ingest, 224 px JPEG", ours, bare) > 0.5
