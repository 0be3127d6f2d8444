"""One local Ray and a few small trained models, shared by the tests that need them; ``run_megu`` runs a command."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from megu_dist.cli import main
from megu_dist.config.compose import load
from megu_dist.data import stream
from megu_dist.data.base import Source
from megu_dist.data.open import open_source
from megu_dist.data.sources.digits import DigitsSettings
from megu_dist.raysession import ray_session

FORGOTTEN = "three"
SMALL_NET = ["model.width=8", "model.stage_blocks=[1,1]", "model.num_channels=1", "model.image_size=8"]
TRAINING = ["train.epochs=8", "train.lr=0.1", "train.batch_size=32", "train.precision=fp32", "engine=ddp"]


@dataclass(frozen=True)
class Outcome:
    """Exit status and everything that the command wrote."""

    code: int
    output: str


# Never closed: loggers that a command sets up keep writing to the stderr that they found.
_OUTPUT = tempfile.TemporaryFile("a+")  # noqa: SIM115
_STDOUT, _STDERR = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))


def run_command(words: list[str]) -> Outcome:
    """``megu WORDS`` in this process; takes the output of file descriptors 1 and 2, as the command replaces those."""
    sys.stdout.flush()
    sys.stderr.flush()
    start = _OUTPUT.seek(0, os.SEEK_END)
    saved = [os.dup(1), os.dup(2)]
    os.dup2(_OUTPUT.fileno(), 1)
    os.dup2(_OUTPUT.fileno(), 2)
    code: object = 0
    try:
        with contextlib.redirect_stdout(_STDOUT), contextlib.redirect_stderr(_STDERR):
            main([str(word) for word in words])
    except SystemExit as stop:
        code = stop.code
    finally:
        _STDOUT.flush()
        _STDERR.flush()
        for number, handle in enumerate(saved, 1):
            os.dup2(handle, number)
            os.close(handle)
    _OUTPUT.seek(start)
    return Outcome(int(code or 0), _OUTPUT.read())  # type: ignore[call-overload]


@pytest.fixture(scope="session")
def run_megu() -> Callable[[list[str]], Outcome]:
    """``run_megu(words)``: exit status and output."""
    return run_command


def run_here(words: list[str]) -> Outcome:
    """The same, without actors and worker groups: by the same code and with the same numbers, as cells and trials run."""
    with stream.in_this_process():
        return run_command(words)


@pytest.fixture(scope="session")
def run_small() -> Callable[[list[str]], Outcome]:
    """``run_small(words)``: :func:`run_here`, for tests that need a run's results and not its processes."""
    return run_here


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where embedded data sets are kept during the tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``run.dir`` of the shared runs."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def digits_words(cache_dir: Path, runs_dir: Path) -> list[str]:
    """The words that every command on the digits needs."""
    return ["data=digits", f"data.cache_dir={cache_dir}", f"run.dir={runs_dir}"]


@pytest.fixture(scope="session")
def digits(cache_dir: Path) -> Source:
    """The digits, opened."""
    return open_source(DigitsSettings(name="digits", cache_dir=str(cache_dir)))


@pytest.fixture(scope="session")
def ray_local(cache_dir: Path) -> Iterator[None]:
    """One local Ray for all tests; commands that run in this process use it, too."""
    with ray_session(load(["data=digits", f"data.cache_dir={cache_dir}"]).settings):
        yield


@pytest.fixture(scope="session")
def digits_model(ray_local: None, digits_words: list[str], runs_dir: Path) -> Path:
    """The folder of a small classifier of the digits."""
    done = run_here(["train", *digits_words, *SMALL_NET, *TRAINING, "run.name=original"])
    assert done.code == 0, done.output
    return runs_dir / "original" / "model"


@pytest.fixture(scope="session")
def digits_retrained(ray_local: None, digits_words: list[str], runs_dir: Path) -> Path:
    """The same, trained without the forgotten class."""
    words = ["exclude_forget=true", f"forget.classes=[{FORGOTTEN}]", "run.name=retrained"]
    done = run_here(["train", *digits_words, *SMALL_NET, *TRAINING, *words])
    assert done.code == 0, done.output
    return runs_dir / "retrained" / "model"
