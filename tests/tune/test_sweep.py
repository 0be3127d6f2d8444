"""Real sweeps on the digits: what is shared, kept, retried, stopped early and handed over."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest

Run = Callable[[list[str]], Any]


@pytest.fixture(scope="module")
def words(digits_words: list[str], digits_model: Path, digits_retrained: Path) -> list[str]:
    """A sweep without a space."""
    models = [f"model.path={digits_model}", f"evaluate.retrained={digits_retrained}", "engine=ddp"]
    train = ["train=finetune", "train.epochs=1", "train.lr=0.02", "train.retain_per_epoch=200", "train.precision=fp32"]
    request = ["forget.classes=[three]", "data.validation_fraction=0.5", "perturb.steps=1"]
    return ["sweep", *digits_words, *models, *train, *request, "evaluate.retain_train_limit=200"]


GRID = ["sweep.space.method.alpha=[0,1]", "sweep.space.method.beta=[0,1]", "sweep.seeds=[0,1]"]


@pytest.fixture(scope="module")
def grid(words: list[str], run_megu: Run, runs_dir: Path) -> tuple[Path, Any]:
    done = run_megu([*words, *GRID, "run.name=grid", "sweep.loggers=[mlflow,tensorboard]"])
    assert done.code == 0, done.output
    return runs_dir / "grid", done


def test_every_setting_and_seed_has_numbers(grid: tuple[Path, Any]) -> None:
    rows = pd.read_parquet(grid[0] / "sweep.parquet")
    assert len(rows) == 8
    assert set(rows["status"]) == {"done"}
    assert rows["versus_retrained/tow"].between(0, 1).all()
    assert rows["original/acc_forget_test"].gt(0.5).all()
    expected = (1 - rows["forget_gap"]) * (1 - rows["retain_gap"])
    assert (rows["score"] - expected).abs().max() < 1e-9
    unlike = rows.groupby("seed")["unlearned/loss_retain_test"].nunique()
    assert (unlike > 1).all(), "α and β changed nothing"
    assert "recommended.yaml" in grid[1].output


def test_noise_is_made_once_for_all_strengths(grid: tuple[Path, Any]) -> None:
    """Once per seed, which draws other labels; the oracle was asked once."""
    records = [json.loads(path.read_text()) for path in (grid[0] / "shared").glob("*/.stages/perturb.json")]
    assert len(records) == 2
    assert {record["inputs"]["seed"] for record in records} == {0, 1}
    assert all("noise" not in record["inputs"]["perturb"] for record in records)  # both, for every strength
    calls = [json.loads(p.read_text())["info"]["calls"] for p in (grid[0] / "shared").glob("*/.stages/oracle.json")]
    assert sum(calls) == 0, "trials asked an oracle that the driver had asked already"


def test_only_numbers_are_left_of_trials(grid: tuple[Path, Any]) -> None:
    left = {path.name for path in (grid[0] / "trials").glob("*/*/*") if path.is_dir()}
    assert left <= {"split"} | {path for path in left if path.startswith(".")}
    assert len(list((grid[0] / "trials").glob("*/*/result.json"))) == 8


def test_loggers_have_every_trial(grid: tuple[Path, Any]) -> None:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{grid[0] / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("grid")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 4
    assert all(0 <= run.data.metrics["score"] <= 1 for run in runs)
    assert len(list((grid[0] / "tune").glob("*/*/events.out.tfevents.*"))) == 4


def test_what_was_tried_is_not_tried_again(grid: tuple[Path, Any], words: list[str], run_megu: Run) -> None:
    """A larger grid tries the new settings only; the old ones keep their numbers, whatever the search."""
    before = {path: path.stat().st_mtime_ns for path in (grid[0] / "trials").glob("*/*/result.json")}
    done = run_megu([*words, *GRID, "sweep.space.method.alpha=[0,1,2]", "run.name=grid"])
    assert done.code == 0, done.output
    after = {path: path.stat().st_mtime_ns for path in (grid[0] / "trials").glob("*/*/result.json")}
    assert len(after) == 12
    assert {path: after[path] for path in before} == before
    assert len(list((grid[0] / "shared").glob("*/.stages/perturb.json"))) == 2


def test_a_trial_whose_process_is_killed_is_tried_again(words: list[str], run_megu: Run, runs_dir: Path) -> None:
    """And a setting that cannot work is named, while the others have their numbers."""
    folder, killed = runs_dir / "killed", []

    def kill() -> None:
        while not list((folder / "trials").glob("*/seed0")):
            time.sleep(0.02)
        for process in psutil.Process().children(recursive=True):  # other tests' trials are not ours to kill
            with contextlib.suppress(psutil.NoSuchProcess):
                if (process.cmdline() or [""])[0].startswith("ray::ImplicitFunc"):
                    process.kill()
                    killed.append(process.pid)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    space = ["sweep.space.train.lr=[0.01,1e30]", "sweep.runners=1", "sweep.retries=1"]
    done = run_megu([*words, *space, "run.name=killed"])
    killer.join(5)
    assert killed
    assert done.code == 2
    assert "1 settings have no result" in done.output
    assert "failed: train.lr=1e+30" in done.output
    rows = pd.read_parquet(folder / "sweep.parquet").set_index("train.lr")
    assert rows.loc[0.01, "status"] == "done"
    assert rows.loc[1e30, "status"] == "failed"
    assert rows.loc[1e30, "error"]


def test_optuna_has_several_objectives(words: list[str], run_megu: Run, runs_dir: Path) -> None:
    space = ["sweep.space.train.lr={low: 0.001, high: 0.1, log: true}", "sweep.space.method.lambda_forget=[0.3,1]"]
    done = run_megu([*words, *space, "sweep.search=optuna", "sweep.trials=5", "run.name=optuna"])
    assert done.code == 0, done.output
    rows = pd.read_parquet(runs_dir / "optuna" / "sweep.parquet")
    assert len(rows) == 5
    assert rows["train.lr"].between(0.001, 0.1).all()
    assert rows["train.lr"].nunique() == 5
    summary = json.loads((runs_dir / "optuna" / "summary.json").read_text())
    assert set(summary["importances"]) <= {"train.lr", "method.lambda_forget"}
    assert summary["front"]


@pytest.mark.slow
def test_asha_stops_trials_after_an_epoch(words: list[str], run_megu: Run, runs_dir: Path) -> None:
    """Rates too small to learn anything are not trained to the end."""
    space = ["sweep.space.train.lr=[0.05,1e-7,2e-7,3e-7,4e-7,5e-7]", "sweep.runners=1"]
    asked = ["sweep.scheduler=asha", "train.epochs=3", "run.name=asha"]
    done = run_megu([*words, *space, *asked])
    assert done.code == 0, done.output
    rows = pd.read_parquet(runs_dir / "asha" / "sweep.parquet").set_index("train.lr")
    assert rows.loc[0.05, "epochs"] == 3
    assert (rows.drop(0.05)["epochs"] == 1).sum() >= 3


@pytest.mark.slow
def test_pbt_goes_on_from_better_trials(words: list[str], run_megu: Run, runs_dir: Path) -> None:
    space = ["sweep.space.train.lr=[1e-7,0.05]", "sweep.runners=2", "sweep.search=random", "sweep.trials=4"]
    done = run_megu([*words, *space, "sweep.scheduler=pbt", "train.epochs=4", "run.name=pbt"])
    assert done.code == 0, done.output
    rows = pd.read_parquet(runs_dir / "pbt" / "sweep.parquet")
    assert len(rows) == 4
    assert set(rows["epochs"]) == {4}
    histories = [path.read_text() for path in (runs_dir / "pbt" / "trials").glob("*/seed0/result.json")]
    taken = [path for path in (runs_dir / "pbt" / "trials").iterdir() if not path.name.endswith("-0")]
    assert taken, "no trial took over another's weights"
    assert len(histories) >= 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["sweep.space.method.alpha=[0]", "sweep.search=gird"], "sweep.search=gird.*grid"),
        (["sweep.space.method.alpha=[0,-1]"], r"sweep.space.method.alpha: -1: method.alpha=-1.0: must be at least 0"),
        (["sweep.space.method.alhpa=[0]"], "method.alpha"),
        (["sweep.space.method.alpha=[0]", "sweep.objectives=[acc]"], "there is no 'acc'"),
        (
            ["sweep.space.method.alpha=[0]", "evaluate.retrained=null", "sweep.objectives=[tow]"],
            "set evaluate.retrained",
        ),
        (["sweep.space.method.alpha=[0]", "sweep.loggers=[mlfow]"], "mlflow"),
        (["sweep.space.method.alpha=[0]", "sweep.seeds=[1,1]"], "different seeds"),
        (["sweep.space.method.alpha=[0]", "sweep.scheduler=asha"], "train.epochs=2 or more"),
        (["sweep.space.perturb.tau=[1,2]", "sweep.scheduler=pbt", "train.epochs=2"], "in mid-training"),
        (["sweep.space.method.alpha=[0]", "data.validation_fraction=0"], "set data.validation_fraction"),
        (["sweep.space.method.alpha=[0]", "model.path=null"], "model.path is not set"),
        (["sweep.space.method.alpha=[0]", "--resume"], "there is no sweep in"),
    ],
)
def test_wrong_input_starts_nothing(
    given: list[str], message: str, words: list[str], run_megu: Run, runs_dir: Path
) -> None:
    import re

    done = run_megu([*words, *given, "run.name=wrong"])
    assert done.code == 2
    assert re.search(message, done.output), done.output
    assert "Traceback" not in done.output
    assert not (runs_dir / "wrong" / "trials").exists()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_trials_with_several_workers_start_ray_train_and_never_wait_for_each_other(
    words: list[str], run_megu: Run, runs_dir: Path
) -> None:
    """Two trials of two workers at a time on this machine's logical CPUs; numbers are those of one worker."""
    space = ["sweep.space.train.lr=[0.01,0.02,0.05]"]
    for name, workers in (("two", 2), ("one", 1)):
        done = run_megu([*words, *space, f"train.num_workers={workers}", f"run.name={name}-workers"])
        assert done.code == 0, done.output
    one, two = (
        pd.read_parquet(runs_dir / f"{n}-workers" / "sweep.parquet").set_index("train.lr") for n in ("one", "two")
    )
    assert len(two) == 3
    for column in ("unlearned/loss_retain_test", "unlearned/loss_forget_test"):
        assert (one[column] - two[column]).abs().max() < 1e-3


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("search", ["grid", "optuna"])
def test_a_sweep_that_was_killed_goes_on(search: str, words: list[str], runs_dir: Path) -> None:
    """SIGKILL of the driver after the first results: the second run keeps them, and ends with as many as were asked for."""
    import os
    import signal
    import subprocess
    import sys

    folder = runs_dir / f"killed-{search}"
    space = ["sweep.space.train.lr=[0.01,0.02,0.05,0.1]", "sweep.trials=4", f"sweep.search={search}", "sweep.runners=1"]
    command = [sys.executable, "-m", "megu_dist.cli", *words, *space, f"run.name={folder.name}"]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    while first.poll() is None and len(list((folder / "trials").glob("*/seed0/result.json"))) < 2:
        time.sleep(0.1)
    assert first.poll() is None, "the sweep ended before it was killed"
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    kept = {path: path.stat().st_mtime_ns for path in (folder / "trials").glob("*/seed0/result.json")}
    again = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    rows = pd.read_parquet(folder / "sweep.parquet")
    assert len(rows) == 4
    assert set(rows["status"]) == {"done"}
