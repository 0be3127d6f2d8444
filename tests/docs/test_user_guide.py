"""The user guide, done as a new user would: its files are written, and its commands run, in a new folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pages import ROOT, blocks, files

GUIDE = ROOT / "docs" / "user-guide.md"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_the_guide_works_as_it_stands(tmp_path: Path) -> None:
    for name, text in files(GUIDE).items():
        (tmp_path / name).write_text(text)
    script = "\n".join(block.text for block in blocks(GUIDE) if block.language == "sh")
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["bash", "-e", "-o", "pipefail", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Counter({" in done.stdout  # of ask.py
    metrics = json.loads((tmp_path / "runs" / "no-three" / "metrics.json").read_text())
    models = metrics["models"]
    assert models["original"]["acc_forget_test"] > 0.8
    assert models["unlearned"]["acc_forget_test"] < 0.1
    assert models["unlearned"]["acc_retain_test"] > models["original"]["acc_retain_test"] - 0.06
    assert metrics["versus_retrained"]["tow"] > 0.8
    single = json.loads((tmp_path / "runs" / "twenty-images" / "metrics.json").read_text())
    assert single["forget"]["count"] == 20
    kept = {name: model["acc_retain_test"] for name, model in single["models"].items()}
    assert kept["unlearned"] > kept["original"] - 0.03
