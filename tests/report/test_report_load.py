"""Loading, the counts behind the figures, labels and the terminal table."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from megu_dist.errors import UserError
from megu_dist.report import style
from megu_dist.report.figures import _global_steps
from megu_dist.report.load import RunMetrics, RunResults
from megu_dist.report.samples import load_samples
from megu_dist.report.tables import forgotten_predictions, per_class
from megu_dist.report.terminal import summary_table

MakeRun = Callable[..., Path]


def test_samples_hold_what_the_files_hold(make_run: MakeRun) -> None:
    results = RunResults.load(make_run(channels=3))
    samples = load_samples(results.perturbed_files, 5)
    assert len(samples) == 5
    assert len(load_samples(results.perturbed_files, 99)) == 14
    assert samples[0].image.shape == (12, 12, 3)
    assert np.allclose(np.abs(samples[0].noise_pos), 4 / 255)
    assert np.array_equal(samples[0].perturbed(0, 0), samples[0].image)
    assert np.abs(samples[0].perturbed(0.5, 0.25) - samples[0].image).max() <= 0.75 * 4 / 255 + 1e-12
    assert results.noise_strengths == (0.5, 0.25)


def test_accuracy_per_class_is_counted_from_test_rows(make_run: MakeRun) -> None:
    results = RunResults.load(make_run())
    data, rows = per_class(results), results.predictions["retrained"]
    assert data is not None
    chosen = np.char.endswith(rows.part, "_test") & (rows.label == 4)
    assert data.accuracy["retrained"][4] == pytest.approx((rows.prediction[chosen] == 4).mean())
    assert [name for name, mark in zip(data.names, data.marked, strict=True) if mark] == ["Shirt"]


def test_shares_of_destinations_sum_to_one(make_run: MakeRun) -> None:
    data = forgotten_predictions(RunResults.load(make_run(class_names=[f"n{i}" for i in range(100)], retrained=False)))
    assert data is not None
    assert data.part == "test"
    assert data.share["unlearned"].sum() == pytest.approx(1)


def test_resumed_history_counts_each_step_once(make_run: MakeRun) -> None:
    run = make_run()
    path = run / "history.jsonl"
    again = {"epoch": 0, "step": 4, "steps": 96, "loss_retain": 7.0}
    before = len(path.read_text().splitlines())
    path.write_text(path.read_text() + json.dumps(again) + '\n{"epoch": 1, "st')
    history = RunResults.load(run).history
    assert len(history) == before
    assert history[1]["loss_retain"] == 7.0


def test_steps_that_start_again_each_epoch() -> None:
    steps = [{"epoch": epoch, "step": step, "steps": 20} for epoch in range(2) for step in (0, 5, 9)]
    assert _global_steps(steps) == [0, 5, 9, 10, 15, 19]
    per_epoch = [event | {"steps": 10} for event in steps]
    assert _global_steps(per_epoch) == [0, 5, 9, 10, 15, 19]


@pytest.mark.parametrize("content", ["{", "[]", '{"schema": 2}', '{"schema": 1, "models": {"original": {"mia": 1}}}'])
def test_unusable_metrics(make_run: MakeRun, content: str) -> None:
    run = make_run()
    (run / "metrics.json").write_text(content)
    with pytest.raises(UserError, match="megu evaluate"):
        RunMetrics.load(run)


def test_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run folder"):
        RunResults.load(tmp_path / "nowhere")


def test_different_long_names_stay_different() -> None:
    names = [f"a name that is much too long to draw, variant {index} of many" for index in range(30)]
    assert len(set(style.labels(names))) == 30
    assert max(map(len, style.labels(names))) <= 32
    assert style.label("a\n b $5$") == r"a b \$5\$"


def test_terminal_table(make_run: MakeRun) -> None:
    names = ["[red]x[/red]", *(f"n{index}" for index in range(9))]
    mine, other = make_run("mine", class_names=names, forget=(0,)), make_run("other[b]", scenario="random")
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(summary_table(RunResults.load(mine), [RunMetrics.load(other)]))
    text = console.export_text()
    for shown in ("Forgot [red]x[/red]", "other[b]", "0.843", "0.007", "0.383", "93.5", "–"):
        assert shown in text
