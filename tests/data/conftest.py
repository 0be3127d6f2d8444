"""Data sets that several tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
from image_samples import write_hf

from megu_dist.data.sources.digits import DigitsSettings
from megu_dist.data.sources.fashion_mnist import DEBIAN_FOLDER, FashionMnistSettings, idx_files


@pytest.fixture
def hf_folder(tmp_path: Path) -> Path:
    """Two training files (10 + 6 rows, row groups of 4) and one test file (7 rows)."""
    folder = tmp_path / "hf"
    write_hf(folder / "train-00000-of-00002.parquet", range(10))
    write_hf(folder / "train-00001-of-00002.parquet", range(10, 16))
    write_hf(folder / "test-00000-of-00001.parquet", range(100, 107))
    return folder


@pytest.fixture
def digits_settings(tmp_path: Path) -> DigitsSettings:
    return DigitsSettings(name="digits", cache_dir=str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def fashion_settings(tmp_path_factory: pytest.TempPathFactory) -> FashionMnistSettings:
    if idx_files(DEBIAN_FOLDER) is None:
        pytest.skip("Debian's dataset-fashion-mnist is not installed")
    return FashionMnistSettings(name="fashion_mnist", cache_dir=str(tmp_path_factory.mktemp("fashion")))
