"""What the oracle said, on the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megu_dist.errors import UserError
from megu_dist.oracle import compare as agreement

if TYPE_CHECKING:
    from rich.table import Table

TOP = 5


def read(folder: Path) -> dict[str, Any]:
    """``transition.json`` of a run folder."""
    file = folder / "transition.json"
    if not file.is_file():
        raise UserError(f"{folder} holds no transition.json: run `megu oracle fill`, or name the folder of a run")
    try:
        data: dict[str, Any] = json.loads(file.read_text())
        shape = (len(data["rows"]), len(data["columns"]))
        if any(np.asarray(data[key], np.float64).shape != shape for key in ("transition", "ratings")):
            raise ValueError("T or a rating lacks a value for some row and column")
        if len(data["row_labels"]) != shape[0] or not isinstance(data["tau"], int | float):
            raise ValueError("row_labels or tau do not fit")
        str(data["oracle"]["id"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} is not a transition matrix of megu ({type(error).__name__}: {error}); make one with `megu "
            "oracle fill`"
        ) from None
    return data


def neighbours(data: dict[str, Any]) -> Table:
    """The nearest classes of each forget concept, with rating and share of T, and the row's quality."""
    from rich.table import Table

    table = Table(title=f"{data['oracle']['id']}, τ = {data['tau']:g}", title_justify="left")
    for heading in ("forget", "nearest: rating, T", "entropy", "asymmetry", "disagreement", "flags"):
        table.add_column(heading, overflow="fold")
    matrix, quality = np.asarray(data["transition"]), data.get("quality") or [{}] * len(data["rows"])
    for i, name in enumerate(data["rows"]):
        own = None if data.get("fine") else data["row_labels"][i]
        order = [j for j in np.argsort(-matrix[i], kind="stable") if j != own][:TOP]
        near = [f"{data['columns'][j]} {_number(data['ratings'][i][j])}, {matrix[i, j]:.3f}" for j in order]
        row = quality[i]
        values = [_number(row.get(key)) for key in ("entropy", "asymmetry", "disagreement")]
        table.add_row(name, "\n".join(near), *values, "; ".join(row.get("flags", [])) or "none")
    return table


def agreements(pairs: list[tuple[str, list[agreement.Agreement]]]) -> Table:
    """Mean over rows for each comparison, then each row."""
    from rich.table import Table

    table = Table()
    for heading in ("compared", "row", "columns", "Spearman", *(f"top-{k}" for k in agreement.TOP)):
        table.add_column(heading, overflow="fold")
    for title, rows in pairs:
        rho = [row.spearman for row in rows if not np.isnan(row.spearman)]
        means = [np.mean([row.overlap[k] for row in rows if k in row.overlap] or [np.nan]) for k in agreement.TOP]
        mean = _number(float(np.mean(rho)) if rho else None)
        table.add_row(title, f"mean of {len(rows)}", "", mean, *(_number(float(m)) for m in means))
        for row in rows[:20]:
            shares = [_number(row.overlap.get(k)) for k in agreement.TOP]
            table.add_row("", row.row, str(row.columns), _number(row.spearman), *shares)
        table.add_section()
    return table


def _number(value: float | None) -> str:
    return "-" if value is None or np.isnan(value) else f"{value:.2f}"
