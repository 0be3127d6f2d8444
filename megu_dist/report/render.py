"""The report of one run: a single HTML page with everything inside it, and the same figures as PNG files."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from megu_dist.errors import UserError
from megu_dist.report import wording
from megu_dist.report.analysis import Analysis
from megu_dist.report.load import MODELS, RunMetrics, RunResults, load_transition
from megu_dist.report.wording import Metric, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SECRET_LINE = re.compile(
    r"^(\s*(?:- )?[\w-]*(?:api_?key|token|secret|password)\s*:[ \t]*)(?!null\b|~|''|\"\")\S.*$", re.M | re.I
)
URL_LOGIN = re.compile(r"(?<=://)[^/\s@]+@")


@dataclass(frozen=True)
class Picture:
    """A figure on the page."""

    name: str
    heading: str
    caption: str
    alt: str
    width: int  # pixels it is made for
    data: str  # base64 of the PNG


def write_report(run_dir: Path, out_dir: Path, compare: Sequence[Path] = (), images: int = 8) -> Path:
    """Write ``report.html`` and ``figures/*.png`` under ``out_dir``; returns the page's path.

    ``images`` perturbed forget images are shown; ``compare`` are run folders listed beside this one.
    """
    results = RunResults.load(Path(run_dir))
    others = load_compared(results.metrics, compare)
    out_dir = Path(out_dir)
    folder = out_dir / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    analysis = Analysis.load(results.metrics.run_dir)
    if analysis is not None and not analysis.is_of(results.metrics.run_dir):
        analysis = None  # of an earlier model
    pictures = draw(_figures(results, images), folder)
    more = [] if analysis is None else draw(analysis.figures(), folder)
    page = out_dir / "report.html"
    page.write_text(_html(results, others, pictures, analysis, more), encoding="utf-8")
    return page


def load_compared(metrics: RunMetrics, compare: Sequence[Path]) -> list[RunMetrics]:
    """The other runs' metrics, each once, without this run itself."""
    seen = {metrics.run_dir.resolve()}
    others: list[RunMetrics] = []
    for path in map(Path, compare):
        if path.resolve() not in seen:
            seen.add(path.resolve())
            others.append(RunMetrics.load(path))
    return others


def draw(figures: Iterator[tuple[str, str, str, str, Figure]], folder: Path) -> list[Picture]:
    """Every figure the run has data for, saved and ready for the page."""
    from megu_dist.report.style import house_style, png_bytes

    pictures: list[Picture] = []
    with house_style():
        for name, heading, caption, alt, figure in figures:
            png = png_bytes(figure)
            (folder / f"{name}.png").write_bytes(png)
            width = round(float(figure.get_figwidth()) * 96)
            pictures.append(Picture(name, heading, caption, alt, width, base64.b64encode(png).decode("ascii")))
    return pictures


def _figures(results: RunResults, images: int) -> Iterator[tuple[str, str, str, str, Figure]]:
    """Name, heading, caption, alternative text and figure, in the order of the page."""
    from megu_dist.report import figures, tables

    accuracy, goes = tables.per_class(results), tables.forgotten_predictions(results)
    if accuracy is not None:
        alt = f"Bar chart of test accuracy per class for {_and(accuracy.accuracy)}."
        yield (
            "per_class_accuracy",
            "Accuracy per class",
            _per_class_caption(accuracy),
            alt,
            figures.per_class_accuracy(accuracy),
        )
    if goes is not None:
        yield "destinations", "Where forgotten images go", *_destination_words(goes), figures.destinations(goes)
    if results.transition is not None and results.transition.matrix.size:
        yield (
            "transition",
            "What the oracle said",
            *_transition_words(results),
            figures.transition_heatmap(results.transition),
        )
    if results.perturbed_files and images > 0:
        yield from _strip(results, images)
    if results.history:
        caption = "Loss on perturbed forget images (towards their new labels) and on retained images, step by step."
        yield "loss", "Fine-tuning", caption, f"Line chart. {caption}", figures.loss_curves(results.history)
    if any(results.metrics.seconds.get(stage) is not None for stage in figures.STAGES):
        caption = _timing_caption(results.metrics)
        yield "timings", "Time", caption, f"Bar chart of seconds per stage. {caption}", figures.stage_timings(results)


def _strip(results: RunResults, images: int) -> Iterator[tuple[str, str, str, str, Figure]]:
    from megu_dist.report import figures
    from megu_dist.report.samples import load_samples

    samples = load_samples(results.perturbed_files, images)
    if not samples:
        return
    alpha, beta = results.noise_strengths
    caption = (
        "Each column is a forgotten image with its label → the label it is tuned towards. N⁺ strengthens the features "
        "shared with the new label, N⁻ weakens those of the old one; both (where made) are magnified, gray is zero. "
        f"Below: clip(x + {alpha:g}·N⁺ + {beta:g}·N⁻), what the model is tuned on."
    )
    alt = f"{len(samples)} forgotten images in columns, with the noise and the perturbed image below each."
    figure = figures.perturbed_strip(samples, results.metrics.class_names, alpha, beta)
    yield "perturbed", "Perturbed images", caption, alt, figure


def _and(names: Any) -> str:
    names = list(names)
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _per_class_caption(data: Any) -> str:
    shown = f"The {len(data.names)} of {data.total} classes shown changed most or were forgotten. "
    return (shown if len(data.names) < data.total else "") + "What was forgotten is shaded."


def _destination_words(data: Any) -> tuple[str, str]:
    top = {model: data.names[int(share.argmax())] for model, share in data.share.items()}
    caption = f"Predicted classes of the {data.images:,} forgotten {data.part} images."
    if "retrained" in data.share:
        caption += " The nearer both bars of a class, the more the model behaves as if it had never seen them."
    most = "; ".join(f"{model}: most often {name}" for model, name in top.items())
    return caption, f"Bar chart of predicted classes. {most}."


def _transition_words(results: RunResults) -> tuple[str, str]:
    transition, oracle = results.transition, results.metrics.oracle.get("name", "?")
    assert transition is not None
    tau = "" if transition.tau is None else f", softmax temperature τ = {transition.tau:g}"
    caption = f"T from the oracle “{oracle}”{tau}: how much of each forgotten concept (row) goes to which class."
    best = [
        f"{row} → {transition.columns[int(line.argmax())]}"
        for row, line in zip(transition.rows[:5], transition.matrix, strict=False)
    ]
    return caption, f"Heat map of T. Heaviest: {'; '.join(best)}."


def _timing_caption(metrics: RunMetrics) -> str:
    from megu_dist.report.figures import duration

    total, mine = metrics.seconds.get("total"), metrics.unlearning_seconds
    retraining = metrics.seconds.get("retrained_training")
    caption = "" if total is None else f"{duration(total)} in all. "
    if retraining and mine is not None:
        caption += f"Perturbing and fine-tuning took {mine / retraining:.1%} of the time that retraining took."
    return caption or "Seconds per stage."


def _html(
    results: RunResults,
    others: Sequence[RunMetrics],
    pictures: Sequence[Picture],
    analysis: Analysis | None,
    analysed: Sequence[Picture],
) -> str:
    metrics = results.metrics
    return render_page(
        files("megu_dist.report").joinpath("template.html.j2").read_text(encoding="utf-8"),
        metrics=metrics,
        forgotten=wording.forgotten_name(metrics),
        verdict=wording.verdict(metrics),
        failed=wording.did_not_forget(metrics),
        models=[name for name in MODELS if name in metrics.models],
        summary=_summary_rows(metrics),
        distances=[(metric, *_distance_cells(metrics, metric)) for metric in wording.distances(metrics)],
        arrows=wording.ARROWS,
        compared=[_compare_row(run, metrics) for run in (metrics, *others)] if others else [],
        pictures=pictures,
        analysis=analysis,
        analysed=analysed,
        settings=public_settings(results.config_text),
        facts=_facts(results),
    )


def render_page(template: str, **values: Any) -> str:
    """A page of the template, with the style that all pages share as ``css``; every value is escaped."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    css = Markup(files("megu_dist.report").joinpath("page.css").read_text(encoding="utf-8"))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(css=css, **values)


def _summary_rows(metrics: RunMetrics) -> list[tuple[Metric, list[str]]]:
    models = [name for name in MODELS if name in metrics.models]
    return [
        (metric, [number(metrics.value(model, metric.key)) for model in models])
        for metric in wording.model_metrics(metrics)
    ]


def _distance_cells(metrics: RunMetrics, metric: Metric) -> tuple[str, str]:
    return number(metrics.versus_retrained.get(metric.key)), number(metrics.floor.get(metric.key))


def _compare_row(run: RunMetrics, this: RunMetrics) -> dict[str, Any]:
    values = wording.compared_values(run)
    other_request = (run.scenario, run.forget_classes, run.forget_count) != (
        this.scenario,
        this.forget_classes,
        this.forget_count,
    )
    return {
        "name": run.name,
        "this": run is this,
        "method": " / ".join(str(part) for part in (run.method, run.oracle.get("name")) if part),
        "forgot": wording.forgotten_name(run) if other_request else "",
        "cells": [number(value, 1 if key == "seconds" else 3) for key, value in values.items()],
    }


def public_settings(text: str) -> str:
    """The settings without passwords and keys: a report is made to be handed on."""
    return URL_LOGIN.sub("(hidden)@", SECRET_LINE.sub(r"\1(hidden)", text))


def _facts(results: RunResults) -> list[tuple[str, str]]:
    """Names and values of the environment table."""
    metrics = results.metrics
    facts = {"scenario": metrics.scenario, "method": metrics.method}
    facts |= {f"oracle {key}": value for key, value in metrics.oracle.items() if key != "stand_in"}
    facts |= {f"engine {key}": value for key, value in metrics.engine.items()}
    facts |= metrics.environment
    return [(key.replace("_", " "), str(value)) for key, value in facts.items() if value is not None]


def write_transition_figure(run_dir: Path) -> Path:
    """``figures/transition.png`` of a run whose oracle has answered; needs no other stage."""
    from megu_dist.report import figures, style

    transition = load_transition(run_dir / "transition.json")
    if transition is None:
        raise UserError(f"{run_dir} holds no transition.json: run `megu oracle fill`")
    target = run_dir / "figures" / "transition.png"
    target.parent.mkdir(exist_ok=True)
    with style.house_style():
        image = style.png_bytes(figures.transition_heatmap(transition))
    temporary = target.with_name(".transition.png")
    temporary.write_bytes(image)
    temporary.replace(target)
    return target


def refresh_report(run_dir: Path) -> bool:
    """Makes the page again as its run had asked for it; False where there is none to make."""
    if not (run_dir / "report.html").is_file():
        return False
    asked = RunResults.load(run_dir).config.get("report") or {}
    compare = [Path(path).expanduser().resolve() for path in asked.get("compare") or ()]
    compare = [path for path in compare if (path / "metrics.json").is_file()]
    rewrite_report(run_dir, compare, int(asked.get("images", 8)))
    return True


def rewrite_report(run_dir: Path, compare: Sequence[Path] = (), images: int = 8) -> None:
    """Makes the page of a finished run again, in place: each file is replaced as a whole."""
    with TemporaryDirectory(prefix=".report-", dir=run_dir) as temporary:
        write_report(run_dir, Path(temporary), compare, images)
        for path in [*(Path(temporary) / "figures").iterdir(), Path(temporary) / "report.html"]:
            target = run_dir / path.relative_to(temporary)
            target.parent.mkdir(exist_ok=True)
            path.replace(target)
