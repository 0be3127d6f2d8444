"""What a benchmark leaves: ``cells.parquet``, tables (Markdown, LaTeX, CSV) and figures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from megu_dist.benchmark.runner import SIDES, SURENESS, Result
from megu_dist.store import write_text

if TYPE_CHECKING:
    from rich.table import Table

PLAIN = ("id", "kind", "group", "target", "method", "base", "seed", "trial", "status", "error", "scenario", "objective",
         "seconds", "cell_seconds")  # fmt: skip


@dataclass(frozen=True)
class Column:
    """A column of the tables: its key in ``cells.parquet`` and heading; without an arrow, near the retrained is best."""

    key: str
    title: str
    digits: int = 3


COLUMNS = (
    Column("unlearned/acc_forget_train", "acc forget train"),
    Column("unlearned/acc_forget_test", "acc forget test"),
    Column("unlearned/acc_retain_train", "acc retain train"),
    Column("unlearned/acc_retain_test", "acc retain test"),
    Column("unlearned/mia", "MIA"),
    Column("versus_retrained/tow", "ToW ↑"),
    Column("versus_retrained/tow_mia", "ToW-MIA ↑"),
    Column("versus_retrained/avg_gap", "avg gap ↓"),
    Column("versus_retrained/kl_forget", "KL forget ↓"),
    Column("versus_retrained/u_lira_auc", "U-LiRA AUC ↓"),
    Column("versus_retrained/seconds_ratio", "time / retraining ↓"),
)
REFERENCES = {"original": "original", "retrained": "retrained", "floor": "second retrained"}


def flatten(results: Iterable[Result]) -> pd.DataFrame:
    """One row per cell; nested numbers get keys such as ``unlearned/mia`` and ``versus_retrained/tow``."""
    rows = []
    for result in results:
        row: dict[str, Any] = {name: result.get(name) for name in PLAIN}
        row["words"] = " ".join(result.get("words", []))
        nested = dict(result.get("models", {})) | {
            n: result[n] for n in ("versus_retrained", "versus_floor") if n in result
        }
        for name, numbers in nested.items():
            row |= {f"{name}/{key}": value for key, value in numbers.items()}
        rows.append(row)
    return pd.DataFrame(rows)


def attack(results: Sequence[Result], folder: Path) -> None:
    """Adds U-LiRA of each method and target to its first scored cell: over all cells that forgot the same images."""
    from megu_dist.metrics.u_lira import u_lira

    of: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        if result["kind"] in ("score", "shadow") and result["status"] == "done":
            of.setdefault((result["group"], result["target"], result["method"]), []).append(result)
    for found in of.values():
        first = found[0]
        if first["kind"] != "score" or "forget_hash" not in first:
            continue
        alike = [result for result in found if result.get("forget_hash") == first["forget_hash"]]
        sides: dict[str, list[np.ndarray]] = {name: [] for name in SIDES}
        for result in alike:
            with np.load(folder / "cells" / result["id"] / SURENESS) as kept:
                for name, values in sides.items():
                    values.append(kept[name])
        first["versus_retrained"] |= u_lira(*(np.stack(values) for values in sides.values()))


def write(results: Sequence[Result], folder: Path) -> pd.DataFrame:
    """Writes everything; returns the cells."""
    from megu_dist.benchmark.figures import write_figures

    cells = flatten(results)
    cells.to_parquet(folder / ".cells.parquet")
    (folder / ".cells.parquet").rename(folder / "cells.parquet")
    (folder / "tables").mkdir(exist_ok=True)
    for name, table in tables(cells).items():
        write_text(folder / "tables" / f"{name}.md", markdown(table))
        write_text(folder / "tables" / f"{name}.csv", table.to_csv())
        write_text(folder / "tables" / f"{name}.tex", table.to_latex(escape=True))
    write_text(folder / "tables" / "tuned.json", json.dumps(tuned(cells), indent=1) + "\n")
    write_figures(cells, folder / "figures")
    return cells


def tuned(cells: pd.DataFrame) -> dict[str, dict[str, str]]:
    """The settings that each method was scored with, by group."""
    scored = cells[(cells["kind"] == "score") & (cells["status"] == "done")]
    found: dict[str, dict[str, str]] = {}
    for group, method, words in scored[["group", "method", "words"]].itertuples(index=False):
        found.setdefault(group, {})[method] = words
    return found


def tables(cells: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """A table per target, and one per group with several."""
    scored = cells[cells["kind"] == "score"]
    found = {}
    for group, of_group in scored.groupby("group", sort=False):
        targets = list(dict.fromkeys(of_group["target"]))
        for target in targets:
            found[f"{group}-{target}"] = table_of(of_group[of_group["target"] == target])
        if len(targets) > 1:
            found[str(group)] = table_of(of_group)
    return found


def table_of(scored: pd.DataFrame) -> pd.DataFrame:
    """Mean ± standard deviation over seeds (and targets), best ToW first; references above, with no rank."""
    summary = summarise(scored)
    columns = [column for column in COLUMNS if column.key in summary]
    rows: dict[str, dict[str, str]] = {}
    for reference in REFERENCES:
        shown = reference_numbers(scored, reference)
        if shown:
            rows[REFERENCES[reference]] = {"rank": ""} | {c.title: shown.get(c.key, "") for c in columns}
    for rank, (method, numbers) in enumerate(summary.iterrows(), 1):
        cells = {c.title: _pm(numbers[c.key], c.digits) for c in columns}
        rows[str(method)] = {"rank": str(rank)} | cells
    for method in dict.fromkeys(scored["method"]):
        if method not in rows:
            status = " / ".join(dict.fromkeys(scored[scored["method"] == method]["status"]))
            rows[str(method)] = (
                {"rank": "–"} | {c.title: "" for c in columns} | {columns[0].title if columns else "": status}
            )
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index.name = "method"
    return table


def summarise(scored: pd.DataFrame) -> pd.DataFrame:
    """(mean, std, n) of every column's key by method, best mean ToW first; only cells that are done count."""
    done = scored[scored["status"] == "done"]
    keys = [column.key for column in COLUMNS if column.key in done]
    rows = {}
    for method, part in done.groupby("method", sort=False):
        rows[method] = {key: _moments(part[key]) for key in keys}
    order = sorted(rows, key=lambda m: -rows[m].get("versus_retrained/tow", (0.0, 0.0, 0))[0])
    return pd.DataFrame.from_dict({method: rows[method] for method in order}, orient="index")


def reference_numbers(scored: pd.DataFrame, reference: str) -> dict[str, str]:
    """What the original, the retrained, or the second retrained model has, over the same seeds and targets."""
    done = scored[scored["status"] == "done"].drop_duplicates(["target", "seed"])
    if done.empty:
        return {}
    if reference == "floor":
        own = {c.key: c.key.replace("versus_retrained", "versus_floor") for c in COLUMNS if c.key.startswith("versus")}
        return {key: _pm(_moments(done[column])) for key, column in own.items() if column in done}
    keys = [c.key for c in COLUMNS if c.key.startswith("unlearned/")]
    own = {key: key.replace("unlearned/", f"{reference}/") for key in keys}
    return {key: _pm(_moments(done[column])) for key, column in own.items() if column in done}


def _moments(values: pd.Series) -> tuple[float, float, int]:
    values = values.dropna()
    if values.empty:
        return float("nan"), 0.0, 0
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0, len(values)


def _pm(moments: tuple[float, float, int], digits: int = 3) -> str:
    mean, std, count = moments
    if not count:
        return ""
    return f"{mean:.{digits}f} ± {std:.{digits}f}" if count > 1 else f"{mean:.{digits}f}"


def markdown(table: pd.DataFrame) -> str:
    """A pipe table."""
    heads = [str(table.index.name), *map(str, table.columns)]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    rows = zip(table.index, table.values, strict=True)
    lines += ["| " + " | ".join([str(name), *map(str, row)]) + " |" for name, row in rows]
    return "\n".join(lines) + "\n"


SHOWN = ("rank", "acc forget train", "acc retain test", "MIA", "ToW ↑", "ToW-MIA ↑", "KL forget ↓")


def terminal(cells: pd.DataFrame) -> list[Table]:
    """Rich tables with the main columns, one per target."""
    from rich.table import Table

    found = []
    for name, table in tables(cells).items():
        shown = table[[head for head in SHOWN if head in table]]
        out = Table(title=name)
        for head in [str(table.index.name), *map(str, shown.columns)]:
            out.add_column(head, no_wrap=head == table.index.name)
        for method, row in zip(shown.index, shown.values, strict=True):
            out.add_row(str(method), *(str(value).replace(" ± ", " ±") for value in row))
        found.append(out)
    return found
