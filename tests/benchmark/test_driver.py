"""A whole small benchmark on the digits: every kind of cell, again from what is kept, and with a method that fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from megu_dist.benchmark.driver import best_words
from megu_dist.benchmark.plan import Cell

Run = Callable[[list[str]], Any]
EXPERIMENT = """# @package _global_
defaults:
  - benchmark_digits
  - _self_
benchmark:
  seeds: [0]
  trials: 2
  runners: 1
  groups:
    class:
      train: [train=scratch, train.epochs=3, train.lr=0.1]
      unlearn: [train=finetune, train.epochs=1, train.lr=0.02, train.retain_per_epoch=300]
      variants: {}
    random: null
"""


@pytest.fixture(scope="module")
def words(cache_dir: Path, runs_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    own = tmp_path_factory.mktemp("own")
    (own / "experiment").mkdir()
    (own / "experiment" / "tiny.yaml").write_text(EXPERIMENT)
    where = [f"data.cache_dir={cache_dir}", f"run.dir={runs_dir}"]
    return ["benchmark", "--config-dir", str(own), "experiment=tiny", *where]


@pytest.fixture(scope="module")
def first(words: list[str], ray_local: None, run_megu: Run, runs_dir: Path) -> tuple[Path, Any]:
    """A benchmark in which one method cannot work: its oracle's descriptions are no JSON."""
    broken = runs_dir / "broken.json"
    broken.write_text("{")
    chosen = ["run.name=bench", "benchmark.methods=[finetune,ssd,megu]", f"oracle.descriptions={broken}"]
    return runs_dir / "bench", run_megu([*words, *chosen, "benchmark.retries=0"])


def test_every_cell_that_can_has_numbers(first: tuple[Path, Any]) -> None:
    cells = pd.read_parquet(first[0] / "cells.parquet").set_index("id")
    assert set(cells["kind"]) == {"original", "retrained", "trial", "score"}
    cells = cells[cells["base"] != "megu"]
    assert set(cells["status"]) == {"done"}
    scored = cells[cells["kind"] == "score"]
    assert list(scored["method"]) == ["finetune", "ssd"]
    assert scored["retrained/acc_forget_test"].eq(0).all()
    assert scored["original/acc_forget_test"].gt(0.5).all()
    assert scored["versus_retrained/tow"].between(0, 1).all()
    assert scored["versus_retrained/seconds_ratio"].gt(0).all()
    assert scored["versus_floor/kl_forget"].gt(0).all()
    trials = cells[cells["kind"] == "trial"]
    assert trials["objective"].between(0, 1).all()
    assert trials.loc["trial/class/ssd/0", "words"] == ""
    assert "method.alpha=" in trials.loc["trial/class/ssd/1", "words"]
    of_ssd = trials[trials["method"] == "ssd"]
    best = of_ssd[of_ssd["objective"] == of_ssd["objective"].max()].iloc[0]
    assert scored.loc["score/class/three/seed0/ssd", "words"] == best["words"]


def test_a_method_that_fails_is_reported_and_never_scored(first: tuple[Path, Any]) -> None:
    folder, done = first
    assert done.code == 2
    assert "trial/class/megu/0" in done.output
    assert "every trial of megu failed" in done.output
    cells = pd.read_parquet(folder / "cells.parquet").set_index("id")
    assert cells.loc["trial/class/megu/0", "status"] == "failed"
    assert cells.loc["score/class/three/seed0/megu", "status"] == "blocked"
    assert "| megu | – | blocked" in (folder / "tables" / "class-three.md").read_text()
    assert json.loads((folder / "tables" / "tuned.json").read_text())["class"].keys() == {"finetune", "ssd"}


def test_another_run_computes_only_what_is_new(first: tuple[Path, Any], words: list[str], run_megu: Run) -> None:
    before = {
        path: path.stat().st_mtime_ns for path in first[0].glob("cells/**/result.json") if "megu" not in str(path)
    }
    done = run_megu([*words, "run.name=bench", "benchmark.methods=[ssd,neggrad]"])
    assert done.code == 0, done.output
    assert {path: path.stat().st_mtime_ns for path in before} == before
    cells = pd.read_parquet(first[0] / "cells.parquet")
    assert list(cells[cells["kind"] == "score"]["method"]) == ["ssd", "neggrad"]


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("benchmark.groups.class.targets.three=['forget.classes=[thre]']", "three"),
        ("benchmark.methods=[sdd]", "ssd"),
        ("benchmark.trials=0", "at least 1"),
        ("benchmark.groups.class.data=['data=digits']", "validation"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(
    words: list[str], run_megu: Run, runs_dir: Path, word: str, told: str
) -> None:
    done = run_megu([*words, "run.name=bench-bad", word])
    assert done.code == 2
    assert told in done.output
    assert "Traceback" not in done.output
    assert not (runs_dir / "bench-bad").exists()


def test_the_best_trial_wins_and_the_first_of_equals() -> None:
    cell = Cell("s", "score", (), "g", needs={"trial0": "t0", "trial1": "t1", "trial2": "t2", "original": "o"})
    results = {
        f"t{k}": {"status": status, "objective": value, "trial": k, "words": [f"k={k}"]}
        for k, (status, value) in enumerate([("done", 0.5), ("done", 0.5), ("failed", 0.9)])
    }
    assert best_words(cell, results) == ["k=0"]
