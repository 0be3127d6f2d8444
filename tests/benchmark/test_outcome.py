from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from megu_dist.benchmark import outcome
from megu_dist.benchmark.runner import SURENESS


def score(method: str, seed: int, tow: float, status: str = "done", target: str = "cat") -> dict[str, Any]:
    accuracies = {"acc_forget_train": 0.1, "acc_retain_test": 0.9, "mia": 0.3}
    return {
        "id": f"{target}/{method}/{seed}", "kind": "score", "group": "g", "target": target, "method": method,
        "base": method, "seed": seed, "trial": -1, "status": status, "words": ["train.lr=0.1"],
        "models": {"original": accuracies, "retrained": accuracies, "unlearned": accuracies | {"mia": tow}},
        "versus_retrained": {"tow": tow, "tow_mia": tow, "avg_gap": 1 - tow, "kl_forget": 1 - tow, "seconds_ratio": 0.1},
        "versus_floor": {"kl_forget": 0.05, "tow": 0.99},
    }  # fmt: skip


RESULTS = [
    *(score("good", seed, tow) for seed, tow in enumerate((0.9, 0.8, 1.0))),
    *(score("bad", seed, 0.2) for seed in range(3)),
    {**score("broken", 0, 1.0, "failed"), "models": {}, "versus_retrained": {}},
]


def test_mean_and_sample_standard_deviation_by_method_best_first() -> None:
    table = outcome.tables(outcome.flatten(RESULTS))["g-cat"]
    assert list(table.index) == ["original", "retrained", "second retrained", "good", "bad", "broken"]
    assert table.loc["good", "ToW ↑"] == "0.900 ± 0.100"
    assert table.loc["good", "rank"] == "1"
    assert table.loc["bad", "ToW ↑"] == "0.200 ± 0.000"
    assert table.loc["bad", "rank"] == "2"
    assert table.loc["second retrained", "KL forget ↓"] == "0.050 ± 0.000"
    assert table.loc["retrained", "MIA"] == "0.300 ± 0.000"


def test_a_failed_cell_is_named_and_never_scored() -> None:
    table = outcome.tables(outcome.flatten(RESULTS))["g-cat"]
    assert table.loc["broken", "rank"] == "–"
    assert "failed" in set(table.loc["broken"])
    assert table.loc["broken", "ToW ↑"] == ""


def test_a_group_of_several_targets_has_a_table_over_all() -> None:
    both = [*RESULTS, score("good", 0, 0.5, target="dog")]
    found = outcome.tables(outcome.flatten(both))
    assert set(found) == {"g", "g-cat", "g-dog"}
    assert found["g"].loc["good", "ToW ↑"].startswith("0.800")
    assert found["g-dog"].loc["good", "ToW ↑"] == "0.500"  # one cell has no spread


def test_likelihood_ratio_attack_over_all_cells_that_forgot_the_same_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cells = [
        score("m", k, 0.5) | {"kind": kind, "forget_hash": "a"} for k, kind in enumerate(["score"] * 2 + ["shadow"] * 3)
    ]
    cells.append(score("m", 9, 0.5) | {"forget_hash": "another request"})
    cells.append(score("plain", 0, 0.5) | {"forget_hash": "a"})
    for cell in cells:
        folder = tmp_path / "cells" / cell["id"]
        folder.mkdir(parents=True)
        np.savez(folder / SURENESS, unlearned=rng.normal(3, 1, 200), retrained=rng.normal(0, 1, 200))
    outcome.attack(cells, tmp_path)
    assert cells[0]["versus_retrained"]["u_lira_auc"] == pytest.approx(0.983, abs=0.02)  # Φ(3 / √2)
    assert not any(
        "u_lira_auc" in cell["versus_retrained"] for cell in cells[1:]
    )  # one number per method; one model has none
    table = outcome.tables(outcome.flatten([c for c in cells if c["kind"] == "score"]))["g-cat"]
    assert "±" not in table.loc["m", "U-LiRA AUC ↓"]


def test_files(tmp_path: Path) -> None:
    outcome.write(RESULTS, tmp_path)
    cells = pd.read_parquet(tmp_path / "cells.parquet")
    assert len(cells) == len(RESULTS)
    assert cells.loc[0, "versus_retrained/tow"] == pytest.approx(0.9)
    text = (tmp_path / "tables" / "g-cat.md").read_text()
    assert text.startswith("| method | rank |")
    assert "| good | 1 |" in text
    assert (tmp_path / "tables" / "g-cat.csv").read_text().count("\n") == 7
    assert "\\begin{tabular}" in (tmp_path / "tables" / "g-cat.tex").read_text()
    assert '"good": "train.lr=0.1"' in (tmp_path / "tables" / "tuned.json").read_text()
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == ["g-bars.png", "g-cost.png", "g-tradeoff.png"]
