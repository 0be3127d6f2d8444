"""The wheel holds all that the command needs, and runs from anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("wheel")
    words = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("*.whl")
    return path


def test_contents(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in (
        "megu_dist/cli.py",
        "megu_dist/configs/config.yaml",
        "megu_dist/report/template.html.j2",
        "megu_dist/report/page.css",
        "megu_dist/request/page.html.j2",
        "megu_dist/request/verify_records.py",
    ):
        assert wanted in names
    experiments = {path.name for path in (ROOT / "configs" / "experiment").glob("*.yaml")}
    assert experiments == {Path(n).name for n in names if n.startswith("megu_dist/configs/experiment/")}
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.split("/")[0] in ("tests", "runs", "configs") or "__pycache__" in name]


def test_runs_from_anywhere(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(target),
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True)
    # -S -c: without the site's own .pth files, so that no editable install of the package is found instead.
    paths = [str(target), *[path for path in sys.path if path.endswith("site-packages")]]
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {
        "PYTHONPATH": os.pathsep.join(paths)
    }
    for words, expected in ((["--help"], "Usage: megu VERB"), (["list", "experiment"], "fashion_mnist_shirt")):
        code = (
            f"import megu_dist.cli as c; assert c.__file__.startswith({str(target)!r}), c.__file__; c.main({words!r})"
        )
        done = subprocess.run([sys.executable, "-S", "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout
    show = "import megu_dist.cli as c; c.main(['show-config', 'unlearn', 'experiment=fashion_mnist_shirt'])"
    done = subprocess.run([sys.executable, "-S", "-c", show], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "- Shirt" in done.stdout
