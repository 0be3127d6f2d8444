"""Tables, front, importances, recommended file and figures of a sweep whose numbers are known. No Ray."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megu_dist.config.compose import load
from megu_dist.tune import page
from megu_dist.tune.outcome import Outcome, outcome
from megu_dist.tune.space import Dimension

ALPHAS, BETAS = (0, 0.5, 1), (0, 1)
SPACE = [Dimension("method.alpha", ALPHAS), Dimension("method.beta", BETAS)]
WORDS = ["data=digits", "data.validation_fraction=0.3", "forget.classes=[3]", "model.path=some/model", "train.lr=0.02"]


def score(alpha: float, beta: float, seed: int) -> float:
    """Best at α = 1, β = 0; β matters a hundred times less."""
    return 0.5 + 0.4 * alpha - 0.004 * beta + 0.01 * seed


def rows(failed: tuple[float, float] | None = None) -> list[dict[str, Any]]:
    found = []
    for number, (alpha, beta) in enumerate(product(ALPHAS, BETAS)):
        for seed in (0, 1):
            row: dict[str, Any] = {"trial": number, "name": f"t{number}", "seed": seed}
            row["config"] = {"method.alpha": alpha, "method.beta": beta}
            if (alpha, beta) == failed:
                found.append(row | {"status": "failed", "error": "broken"})
                continue
            value = score(alpha, beta, seed)
            models = {"unlearned": {"acc_forget_test": 1 - value, "acc_retain_test": 0.9, "mia": 0.1}}
            row |= {"status": "done", "score": value, "forget_gap": 1 - value, "retain_gap": 0.1 * beta}
            row |= {"seconds": 10.0 - 4 * alpha, "models": models, "versus_retrained": {"tow": value / 2}}
            found.append(row)
    return found


@pytest.fixture(scope="module")
def whole() -> Outcome:
    return outcome(rows(), SPACE)


def test_settings_are_averages_over_seeds_best_first(whole: Outcome) -> None:
    assert len(whole.rows) == 12
    assert len(whole.settings) == 6
    assert whole.best is not None
    assert (whole.best["method.alpha"], whole.best["method.beta"]) == (1, 0)
    assert whole.best["score"] == pytest.approx(0.905)
    assert whole.best["score_std"] == pytest.approx(np.std([0.9, 0.91], ddof=1))
    assert whole.config == {"method.alpha": 1, "method.beta": 0}


def test_a_setting_that_failed_is_kept_in_the_rows_and_out_of_the_rest() -> None:
    found = outcome(rows((1, 0)), SPACE)
    assert (found.rows["status"] == "failed").sum() == 2
    assert len(found.settings) == 5
    assert found.config == {"method.alpha": 1, "method.beta": 1}
    nothing = outcome([row | {"status": "failed"} for row in rows()], SPACE)
    assert nothing.best is None
    assert nothing.front == []


def test_the_front_is_what_no_other_beats(whole: Outcome) -> None:
    """β = 1 is worse in both gaps and no faster: only α = 1, β = 0 is left."""
    assert [whole.settings.iloc[i]["words"] for i in whole.front] == ["method.alpha=1 method.beta=0"]
    traded = rows()
    for row in traded:
        row["seconds"] = 1 + row["config"]["method.alpha"]
    found = outcome(traded, SPACE)
    assert {found.settings.iloc[i]["method.alpha"] for i in found.front} == {0, 0.5, 1}
    assert {found.settings.iloc[i]["method.beta"] for i in found.front} == {0}


def test_importances_tell_what_matters(whole: Outcome) -> None:
    assert sum(whole.importances.values()) == pytest.approx(1)
    assert whole.importances["method.alpha"] > 0.95


def test_the_recommended_file_gives_the_same_settings_again(whole: Outcome, tmp_path: Path) -> None:
    composed = load(WORDS)
    page.write(whole, SPACE, composed, tmp_path)
    again = load(["experiment=recommended"], (), str(tmp_path)).settings
    wanted = load([*WORDS, "method.alpha=1", "method.beta=0"]).settings
    for section in ("data", "model", "oracle", "method", "engine", "forget", "perturb", "train"):
        assert getattr(again, section) == getattr(wanted, section), section
    assert again.evaluate.split == "test"  # what was chosen on validation images is scored on others


def test_figures_and_page_are_written(whole: Outcome, tmp_path: Path) -> None:
    page.write(whole, SPACE, load(WORDS), tmp_path)
    names = {path.stem for path in (tmp_path / "figures").iterdir()}
    curves = {"curve-method_alpha", "curve-method_beta"}
    assert names == {"heatmap-method_alpha-method_beta", "importances", "pareto", *curves}
    text = (tmp_path / "report.html").read_text()
    assert "Recommended: method.alpha = 1, method.beta = 0" in text
    assert text.count("<img src=") == 5
    assert "<script" not in text


def test_a_space_without_a_grid_has_no_heatmap(tmp_path: Path) -> None:
    space = [Dimension("method.alpha", (), 0.0, 1.0), Dimension("method.beta", BETAS)]
    page.write(outcome(rows((0, 1)), space), space, load(WORDS), tmp_path)
    assert not list((tmp_path / "figures").glob("heatmap*"))
    assert "0 1</li>" not in (tmp_path / "report.html").read_text()
    assert "method.alpha=0 method.beta=1: broken" in (tmp_path / "report.html").read_text()
