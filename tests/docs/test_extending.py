"""The package of docs/extending.md, taken from the page, installed, and run on the digits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pages import ROOT, files

from megu_dist.data.base import Source

RATINGS = {"three": {"eight": 7, "five": 8, "nine": 4}}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH with the page's package, as pip leaves it."""
    root = tmp_path_factory.mktemp("extending")
    for name, text in files(ROOT / "docs" / "extending.md").items():
        path = root / "my-unlearning" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    words = ["install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target", str(root / "site")]
    pip = [sys.executable, "-m", "pip", *words, str(root / "my-unlearning")]
    done = subprocess.run(pip, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return root / "site"


def megu(installed: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, whose Ray and workers see the package as well."""
    command = [sys.executable, "-m", "megu_dist.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(installed)})


def write_digits(digits: Source, path: Path) -> None:
    """The digits as one NumPy file."""
    import io

    from PIL import Image

    arrays = {}
    for split in ("train", "test"):
        rows = digits.gather(split, np.arange(digits.num_rows(split)))
        arrays[f"y_{split}"] = rows["label"].to_numpy()
        images = [np.asarray(Image.open(io.BytesIO(one))) for one in rows["image"].to_pylist()]
        arrays[f"x_{split}"] = np.stack(images)
    np.savez(path, names=np.array(digits.class_names), **arrays)


def test_the_components_are_listed_and_their_settings_checked(installed: Path) -> None:
    listed = megu(installed, "list").stdout
    assert all(f"  {name} " in listed for name in ("to_uniform", "confidence", "table", "npz"))
    wrong = megu(installed, "show-config", "unlearn", "method=to_uniform", "method.lambda_forget=much")
    assert wrong.returncode == 2
    assert "method.lambda_forget=much" in wrong.stderr
    wrong = megu(installed, "unlearn", "data=npz", "data.path=nowhere.npz", "model.path=x", "forget.classes=[1]")
    assert wrong.returncode == 2
    assert "data.path=nowhere.npz" in wrong.stderr


def test_a_plugin_that_cannot_be_imported_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import not_there\n")
    folder = tmp_path / "broken-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[megu_dist]\nmine = broken\n")
    done = megu(tmp_path, "list", "method")
    assert done.returncode == 2
    assert "plugin 'mine'" in done.stderr
    assert "pip uninstall broken" in done.stderr


@pytest.mark.slow
def test_the_components_run(installed: Path, digits: Source, digits_model: Path, tmp_path: Path) -> None:
    write_digits(digits, tmp_path / "digits.npz")
    (tmp_path / "ratings.json").write_text(json.dumps(RATINGS))
    request = ["data=npz", f"data.path={tmp_path / 'digits.npz'}", f"model.path={digits_model}"]
    request += [
        "forget.classes=[three]",
        f"run.dir={tmp_path / 'runs'}",
        "engine=ddp",
        "train.epochs=4",
        "train.lr=0.02",
    ]
    request += ["oracle=table", f"oracle.path={tmp_path / 'ratings.json'}"]
    done = megu(installed, "unlearn", *request, "method=to_uniform", "run.name=uniform")
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "runs" / "uniform" / "metrics.json").read_text())
    models = told["models"]
    assert models["original"]["acc_forget_test"] > 0.7
    assert models["unlearned"]["acc_forget_test"] < 0.2
    assert models["unlearned"]["confidence_forget_test"] < models["original"]["confidence_forget_test"]
    # An oracle is only asked by methods that use it.
    done = megu(installed, "oracle", "fill", *request, "run.name=oracle")
    assert done.returncode == 0, done.stderr
    transition = json.loads((tmp_path / "runs" / "oracle" / "transition.json").read_text())
    row = dict(zip(transition["columns"], transition["transition"][0], strict=True))
    assert max(row, key=row.__getitem__) == "five"
