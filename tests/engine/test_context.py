"""The fit loop on several workers."""

from __future__ import annotations

from pathlib import Path

import gloo_workers
import pytest


def test_a_worker_without_an_image_in_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget and retained images are dealt out separately, so a small batch may leave a worker without any."""
    monkeypatch.setenv("GLOO_FOLDER", str(tmp_path))
    expected = gloo_workers.run_sparse(0, 1)["weights"]
    found = gloo_workers.launch(tmp_path, 2, "run_sparse")[0]["weights"]
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).abs().max() < 1e-5, name
