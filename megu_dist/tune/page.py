"""The sensitivity report: one HTML page with everything inside it, and the same figures as PNG files."""

from __future__ import annotations

import shutil
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from megu_dist.config.compose import Composed
from megu_dist.report.render import draw, public_settings, render_page
from megu_dist.store import write_text
from megu_dist.tune import outcome
from megu_dist.tune.figures import figures
from megu_dist.tune.outcome import Outcome
from megu_dist.tune.space import Dimension, shown

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = (
    ("score", "score ↑"),
    ("unlearned/acc_forget_test", "accuracy, forgotten ↓"),
    ("unlearned/acc_retain_test", "accuracy, retained ↑"),
    ("unlearned/mia", "MIA"),
    ("versus_retrained/tow", "ToW ↑"),
    ("versus_retrained/tow_mia", "ToW-MIA ↑"),
    ("versus_retrained/kl_forget", "KL forget ↓"),
    ("seconds", "seconds ↓"),
)
MOST_ROWS = 40


def write(found: Outcome, space: list[Dimension], composed: Composed, folder: Path) -> None:
    """``sweep.parquet``, ``summary.json``, ``experiment/recommended.yaml``, ``figures/*.png`` and ``report.html``."""
    outcome.write(found, composed, folder)
    write_text(folder / "summary.json", outcome.summary_json(found) + "\n")
    drawn = folder / ".figures"
    shutil.rmtree(drawn, ignore_errors=True)
    drawn.mkdir()
    pictures = draw(figures(found, space), drawn)
    shutil.rmtree(folder / "figures", ignore_errors=True)
    drawn.rename(folder / "figures")
    write_text(folder / "report.html", _html(found, composed, pictures, folder))


def _html(found: Outcome, composed: Composed, pictures: list[Any], folder: Path) -> str:
    s = composed.settings
    failed = found.rows[found.rows["status"] != "done"].drop_duplicates("trial")
    file = folder / "experiment" / "recommended.yaml"
    return render_page(
        files("megu_dist.tune").joinpath("sweep.html.j2").read_text(encoding="utf-8"),
        name=folder.name,
        method=s.method.name,
        scenario=s.forget.scenario,
        classes=", ".join(map(str, s.forget.classes)),
        sweep=s.sweep,
        tried=found.rows["trial"].nunique(),
        seeds=found.rows["seed"].nunique(),
        best=None if found.best is None else _named(found, found.best),
        score="" if found.best is None else _pm(found.best, "score"),
        folder=str(folder),
        recommended=file.read_text() if found.best is not None else "",
        heads=[*found.keys, *(title for key, title in COLUMNS if key in found.settings)],
        rows=[_cells(found, row) for _, row in found.settings.head(MOST_ROWS).iterrows()],
        front=[_cells(found, found.settings.iloc[i]) for i in found.front[:MOST_ROWS]],
        left_out=max(0, len(found.settings) - MOST_ROWS),
        failed=failed[["words", "error"]].to_dict("records"),
        pictures=pictures,
        settings=public_settings(composed.yaml),
    )


def _named(found: Outcome, row: pd.Series) -> str:
    return ", ".join(f"{key} = {shown(row[key])}" for key in found.keys)


def _cells(found: Outcome, row: pd.Series) -> list[str]:
    keys = [key for key, _ in COLUMNS if key in found.settings]
    return [*(shown(row[key]) for key in found.keys), *(_pm(row, key) for key in keys)]


def _pm(row: pd.Series, key: str) -> str:
    if pd.isna(row[key]):
        return ""
    digits = 1 if key == "seconds" else 3
    std = row.get(f"{key}_std", 0.0)
    return f"{row[key]:.{digits}f}" + (f" ± {std:.{digits}f}" if std else "")


SHORT = {"unlearned/acc_forget_test": "forgotten ↓", "unlearned/acc_retain_test": "retained ↑"}


def terminal(found: Outcome, count: int = 10) -> Table:
    """The best settings."""
    from rich.table import Table

    table = Table(title=f"best of {len(found.settings)} settings, by score on validation images", box=None)
    for key in found.keys:
        table.add_column(key.rsplit(".", 1)[-1], justify="right")
    for key, title in COLUMNS:
        if key in found.settings:
            table.add_column(SHORT.get(key, title), justify="right", no_wrap=True)
    for _, row in found.settings.head(count).iterrows():
        table.add_row(*(cell.replace(" ± ", " ±") for cell in _cells(found, row)))
    return table
