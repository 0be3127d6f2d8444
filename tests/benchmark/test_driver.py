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
def finished(words: list[str], ray_local: None, run_megu: Run, runs_dir: Path) -> Path:
    done = run_megu([*words, "run.name=bench", "benchmark.methods=[finetune,ssd]"])
    assert done.code == 0, done.output
    return runs_dir / "bench"


def test_every_cell_has_numbers(finished: Path) -> None:
    cells = pd.read_parquet(finished / "cells.parquet").set_index("id")
    assert set(cells["status"]) == {"done"}
    assert set(cells["kind"]) == {"original", "retrained", "trial", "score"}
    scored = cells[cells["kind"] == "score"]
    assert list(scored["method"]) == ["finetune", "ssd"]
    assert scored["retrained/acc_forget_test"].eq(0).all()
    assert scored["original/acc_forget_test"].gt(0.5).all()
    assert scored["versus_retrained/tow"].between(0, 1).all()
    assert scored["seconds_ratio"].gt(0).all()
    trials = cells[cells["kind"] == "trial"]
    assert trials["objective"].between(0, 1).all()
    assert trials["objective"].notna().all()
    assert trials.loc["trial/class/ssd/0", "words"] == ""
    assert "method.alpha=" in trials.loc["trial/class/ssd/1", "words"]
    best = trials[trials["method"] == "ssd"].sort_values("objective", kind="stable").iloc[-1]
    if best["trial"] == 1:
        assert scored.loc["score/class/three/seed0/ssd", "words"] == best["words"]


def test_a_second_run_computes_nothing(finished: Path, words: list[str], run_megu: Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.glob("cells/**/result.json")}
    done = run_megu([*words, "run.name=bench", "benchmark.methods=[finetune,ssd]"])
    assert done.code == 0, done.output
    assert {path: path.stat().st_mtime_ns for path in finished.glob("cells/**/result.json")} == before


def test_other_settings_compute_only_what_depends_on_them(finished: Path, words: list[str], run_megu: Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.glob("cells/**/result.json")}
    done = run_megu([*words, "run.name=bench", "benchmark.methods=[finetune,neggrad]"])
    assert done.code == 0, done.output
    assert {path: path.stat().st_mtime_ns for path in before} == before
    cells = pd.read_parquet(finished / "cells.parquet")
    assert list(cells[cells["kind"] == "score"]["method"]) == ["finetune", "neggrad"]


def test_a_method_that_fails_is_reported_and_never_scored(
    words: list[str], ray_local: None, run_megu: Run, runs_dir: Path
) -> None:
    broken = runs_dir / "broken.json"
    broken.write_text("{")
    done = run_megu(
        [
            *words,
            "run.name=bench-fails",
            "benchmark.methods=[megu,ssd]",
            f"oracle.descriptions={broken}",
            "benchmark.retries=0",
        ]
    )
    assert done.code == 2
    assert "trial/class/megu/0" in done.output
    assert "every trial of megu failed" in done.output
    cells = pd.read_parquet(runs_dir / "bench-fails" / "cells.parquet").set_index("id")
    assert cells.loc["trial/class/megu/0", "status"] == "failed"
    assert cells.loc["score/class/three/seed0/megu", "status"] == "blocked"
    assert cells.loc["score/class/three/seed0/ssd", "status"] == "done"
    table = (runs_dir / "bench-fails" / "tables" / "class-three.md").read_text()
    assert "| megu | – | blocked" in table
    assert json.loads((runs_dir / "bench-fails" / "tables" / "tuned.json").read_text())["class"].keys() == {"ssd"}


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
