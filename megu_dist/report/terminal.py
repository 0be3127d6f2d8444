"""The report's numbers as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from megu_dist.report import wording
from megu_dist.report.load import MODELS, RunMetrics, RunResults
from megu_dist.report.wording import Metric, number

if TYPE_CHECKING:
    from rich.table import Table


def summary_table(results: RunResults | RunMetrics, compare: Sequence[RunResults | RunMetrics] = ()) -> Table:
    """A row per metric, a column per model, then a column for the unlearned model of each compared run."""
    from rich.table import Table
    from rich.text import Text

    metrics = _metrics(results)
    others = [_metrics(other) for other in compare]
    models = [name for name in MODELS if name in metrics.models]
    table = Table(title=Text(wording.verdict(metrics)), title_justify="left", caption_justify="left")
    table.caption = Text("; ".join(f"{arrow} {meaning}" for arrow, meaning in wording.ARROWS.items()))
    table.add_column("metric")
    for header in [*models, *(other.name for other in others)]:
        table.add_column(Text(header), justify="right", overflow="fold")
    for metric in wording.model_metrics(metrics):
        cells = [metrics.value(model, metric.key) for model in models]
        cells += [other.value("unlearned", metric.key) for other in others]
        table.add_row(Text(_title(metric)), *map(number, cells))
    for index, metric in enumerate(_distances([metrics, *others])):
        if index == 0:
            table.add_section()
        values = [run.versus_retrained.get(metric.key) for run in (metrics, *others)]
        table.add_row(Text(_title(metric)), *_beside(models, [number(value) for value in values]))
    times = [run.unlearning_seconds for run in (metrics, *others)]
    if any(time is not None for time in times):
        table.add_section()
        table.add_row("perturb + finetune, s", *_beside(models, [number(time, 1) for time in times]))
    return table


def _metrics(run: RunResults | RunMetrics) -> RunMetrics:
    return run.metrics if isinstance(run, RunResults) else run


def _title(metric: Metric) -> str:
    return f"{metric.title} {metric.arrow}".rstrip()


def _distances(runs: Sequence[RunMetrics]) -> list[Metric]:
    """Distances measured in any of the runs, each once."""
    return list({metric.key: metric for run in runs for metric in wording.distances(run)}.values())


def _beside(models: Sequence[str], cells: Sequence[str]) -> list[str]:
    """A run's single value in its unlearned column, the others' after the models."""
    return [cells[0] if model == "unlearned" else "" for model in models] + list(cells[1:])
