"""The embedded digits, and opening sources by name."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from image_samples import full_index
from PIL import Image

from megu_dist.config.registry import components
from megu_dist.data.open import open_source
from megu_dist.data.sources.digits import DigitsSettings, DigitsSource
from megu_dist.data.sources.parquet import ParquetSettings
from megu_dist.errors import UserError


def test_digits(digits_settings: DigitsSettings) -> None:
    source = open_source(digits_settings)
    assert (source.num_rows("train"), source.num_rows("test")) == (1437, 360)
    assert source.class_names[:3] == ["zero", "one", "two"]
    assert source.class_names[9] == "nine"
    counts = np.bincount(full_index(source, "test")["label"].to_numpy())
    assert counts.min() >= 35  # stratified
    assert counts.max() <= 37

    images = [np.asarray(Image.open(io.BytesIO(b))) for b in source.gather("train", np.arange(50))["image"].to_pylist()]
    assert images[0].shape == (8, 8)
    assert max(image.max() for image in images) == 255


def test_digits_are_converted_once_and_again_where_the_cache_is_gone(
    digits_settings: DigitsSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = DigitsSource(digits_settings)
    state = pickle.dumps(source)
    (tmp_path / "cache").rename(tmp_path / "moved")
    elsewhere = pickle.loads(state)  # as on another node
    assert elsewhere.gather("test", np.array([3])).equals(source.gather("test", np.array([3])))
    monkeypatch.setattr(DigitsSource, "build", lambda self: pytest.fail("converted again"))
    assert DigitsSource(digits_settings).fingerprint() == source.fingerprint()


def test_cache_dir_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data\.cache_dir"):
        DigitsSource(DigitsSettings(name="digits", cache_dir=str(tmp_path / "file")))


def test_open_source_needs_a_test_split(hf_folder: Path) -> None:
    path = str(hf_folder / "train-*.parquet")
    with pytest.raises(UserError, match=r"no test images.*data\.test_path.*data\.test_fraction"):
        open_source(ParquetSettings(name="parquet", path=path))
    source = open_source(ParquetSettings(name="parquet", path=path, test_fraction=0.25))
    assert (source.num_rows("train"), source.num_rows("test")) == (12, 4)
    with pytest.raises(UserError, match="'parquet'"):
        open_source(ParquetSettings(name="parqet", path=path))


def test_every_source_is_registered_without_heavy_imports() -> None:
    assert {"digits", "fashion_mnist", "image_folder", "parquet"} <= set(components("data"))
    code = (
        "import sys; from megu_dist.config.registry import components; components('data');"
        "print(sorted({'torch', 'ray', 'sklearn', 'huggingface_hub'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
