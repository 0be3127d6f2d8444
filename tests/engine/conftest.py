"""Two gloo processes, started once for all tests of this folder."""

from __future__ import annotations

from typing import Any

import gloo_workers
import pytest


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks computed."""
    return gloo_workers.launch(tmp_path_factory.mktemp("gloo"))


@pytest.fixture(scope="session")
def one_process() -> dict[str, Any]:
    """What one process computes on the joint batches."""
    return gloo_workers.alone()
