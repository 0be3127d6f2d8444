"""Parquet files: fingerprints, size when pickled, and a real data set."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from image_samples import full_index, parquet, values, write_hf

CIFAR = Path(__file__).resolve().parents[3] / "shared" / "data" / "cifar10"


def test_fingerprint_follows_content(hf_folder: Path) -> None:
    before = parquet(hf_folder)
    assert parquet(hf_folder).fingerprint() == before.fingerprint()
    assert parquet(hf_folder, label_column="label").fingerprint() == before.fingerprint()
    write_hf(hf_folder / "test-00000-of-00001.parquet", range(60, 65))
    after = parquet(hf_folder)
    assert after.fingerprint() != before.fingerprint()
    assert values(after, "test") == list(range(60, 65))  # no stale footer


def test_many_files_pickle_small_and_work_in_another_process(tmp_path: Path) -> None:
    write_hf(tmp_path / "part-0000.parquet", range(8))
    content = (tmp_path / "part-0000.parquet").read_bytes()
    for number in range(1, 600):
        (tmp_path / f"part-{number:04d}.parquet").write_bytes(content)
    source = parquet(tmp_path)
    source.gather("train", np.array([4795]))
    state = pickle.dumps(source)
    assert len(state) < 200_000
    (tmp_path / "state").write_bytes(state)
    code = (
        "import pickle, sys, numpy as np; source = pickle.load(open(sys.argv[1], 'rb'));"
        "assert not {'torch', 'ray'} & set(sys.modules);"
        "print(source.num_rows('train'), source.gather('train', np.array([4795, 2]))['label'].to_pylist())"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "state"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "4800 [0, 2]"


def test_cifar10() -> None:
    if not CIFAR.is_dir():
        pytest.skip("CIFAR-10 is not here")
    source = parquet(CIFAR)
    assert source.class_names[3] == "cat"
    assert (source.num_rows("train"), source.num_rows("test")) == (50_000, 10_000)
    labels = full_index(source, "test")["label"].to_numpy()
    assert np.bincount(labels).tolist() == [1000] * 10
    rows = np.array([9999, 17, 5000])
    assert source.gather("test", rows)["label"].to_pylist() == labels[rows].tolist()
