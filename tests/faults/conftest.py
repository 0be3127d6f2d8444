"""A tiny trained classifier, the request that all disturbed runs share, and what an undisturbed run comes to."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import disturb
import nodes
import outcomes
import pytest

NET = ["model.width=8", "model.stage_blocks=[1,1]", "model.num_channels=1", "model.image_size=8"]
PLAIN = ["train.precision=fp32", "train.threads=1", "engine=ddp"]
LEARN = ["train.epochs=6", "train.lr=0.1", "train.batch_size=32", *PLAIN]
TUNING = ["train.epochs=4", "train.lr=0.02", "train.batch_size=64", *PLAIN]
REQUEST = ["forget.classes=[three]", "perturb.steps=40", "perturb.draws=2", "oracle.pairs_per_request=1"]
REQUEST += ["perturb.num_actors=1", "evaluate.num_actors=1"]  # the driver would do so few images by itself


@pytest.fixture(scope="session")
def classifier(cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small classifier of the digits, trained in this process."""
    words = ["data=digits", f"data.cache_dir={cache_dir}", *NET, *LEARN]
    return outcomes.trained_here(words, tmp_path_factory.mktemp("classifier")) / "model"


@pytest.fixture(scope="session")
def training_words(cache_dir: Path) -> list[str]:
    """A training job of short epochs; each waits for Ray Train to take its checkpoint."""
    quick = ["train.retain_per_epoch=128", "train.batch_size=32", *PLAIN]
    return ["data=digits", f"data.cache_dir={cache_dir}", *NET, *quick]


@pytest.fixture(scope="session")
def request_words(classifier: Path, cache_dir: Path) -> list[str]:
    """The request, with one worker."""
    data = ["data=digits", f"data.cache_dir={cache_dir}", f"model.path={classifier}"]
    return ["unlearn", *data, *REQUEST, *TUNING, "oracle=embedding"]


@pytest.fixture(scope="session")
def undisturbed(request_words: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The numbers of a run with one worker that nothing happens to."""
    root = tmp_path_factory.mktemp("undisturbed")
    with disturb.command(request_words, root, "run") as run:
        found = run.finish()
    disturb.gone(run.mark)
    assert not disturb.leftovers(root, run.folder)
    return found


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.getuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder]).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[nodes.Nodes]:
    """A head and two nodes."""
    with nodes.cluster(tmp_path) as made:
        yield made
