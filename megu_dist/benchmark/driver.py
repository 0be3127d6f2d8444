"""Checks a benchmark, works its cells off on a pool of actors, and writes what came of them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megu_dist import workshop
from megu_dist.benchmark import outcome
from megu_dist.benchmark.plan import Cell, make_cells, merge
from megu_dist.benchmark.runner import CellRunner, Result, about
from megu_dist.config.compose import Composed, load
from megu_dist.errors import UserError
from megu_dist.progress import Reporter

USEFUL = ("done", "not applicable")


def check(composed: Composed) -> list[Cell]:
    """All cells. Raises :class:`UserError` for a request, a model or a setting that no cell could work with."""
    from megu_dist.pipeline import Pipeline

    cells = make_cells(composed.settings.benchmark)
    seen: set[tuple[str, ...]] = set()
    with tempfile.TemporaryDirectory(prefix="megu-check-") as folder:
        for cell in cells:
            about = (cell.kind, cell.group, cell.target, cell.method if cell.target in ("", "search") else "")
            if about in seen or (cell.kind == "trial" and cell.trial > 0):
                continue
            seen.add(about)
            try:
                found = load(merge(composed.words, cell.words), (), composed.extra_dir)
                pipeline = Pipeline(found.settings, Path(folder), Reporter())
                if cell.kind != "original":
                    pipeline.check_request()
                if cell.kind == "trial" and "validation" not in pipeline.source.splits:
                    raise UserError("methods are tuned on validation images: set data.validation_fraction=0.1, say")
            except UserError as error:
                raise UserError(f"benchmark.groups.{cell.group} ({cell.id}): {error}") from None
    return cells


def run(composed: Composed, cells: list[Cell], folder: Path, reporter: Reporter) -> list[Result]:
    """Every cell's result, in the order of ``cells``; those whose input failed are "blocked"."""
    s = composed.settings.benchmark
    pool = _Pool(folder, composed)
    results: dict[str, Result] = {}
    tries: dict[str, int] = {}
    waiting = list(cells)
    try:
        with reporter.stage("benchmark", len(cells), "cells"):
            while waiting or pool.busy:
                for cell in [cell for cell in waiting if _ready(cell, results)]:
                    blocked = _blocked(cell, results)
                    if blocked:
                        results[cell.id] = about(cell) | {"status": "blocked", "error": f"{blocked} failed"}
                    elif pool.free:
                        tries[cell.id] = tries.get(cell.id, 0) + 1
                        pool.start(cell, best_words(cell, results))
                    else:
                        continue
                    waiting.remove(cell)
                if not pool.busy:
                    continue
                cell, result = pool.wait()
                if result["status"] == "failed" and tries[cell.id] <= s.retries:
                    reporter.say(f"{cell.id}: {result['error']}; once more")
                    waiting.insert(0, cell)
                    continue
                if result["status"] == "failed":
                    reporter.say(f"{cell.id}: {result['error']}; given up")
                results[cell.id] = result
                reporter.update(len(results))
    finally:
        pool.close()
    done = [results[cell.id] for cell in cells]
    outcome.attack(done, folder)
    return done


def best_words(cell: Cell, results: dict[str, Result]) -> list[str]:
    """The words of the cell's best trial; none for a trial or a model."""
    trials = [results[name] for role, name in cell.needs.items() if role.startswith("trial")]
    done = [result for result in trials if result["status"] == "done"]
    if not done:
        return []
    best = max(done, key=lambda result: (result["objective"], -result["trial"]))
    return list(best["words"])


def _ready(cell: Cell, results: dict[str, Result]) -> bool:
    return all(name in results for name in cell.needs.values())


def _blocked(cell: Cell, results: dict[str, Result]) -> str:
    """A model that the cell needs and that is not there, or all of its trials."""
    models = [name for role, name in cell.needs.items() if not role.startswith("trial")]
    bad = [name for name in models if results[name]["status"] != "done"]
    trials = [name for role, name in cell.needs.items() if role.startswith("trial")]
    if trials and not any(results[name]["status"] in USEFUL for name in trials):
        bad.append(f"every trial of {cell.base}")
    return bad[0] if bad else ""


class _Pool:
    """Actors that take one cell each; one that dies is replaced, and its cell counts as failed."""

    def __init__(self, folder: Path, composed: Composed) -> None:
        import ray

        s = composed.settings.benchmark
        count = workshop.runners(composed.settings, s.runners, s.num_gpus)
        options = {"num_cpus": 1, "num_gpus": s.num_gpus, "runtime_env": workshop.environment(count)}
        self.make: Callable[[], Any] = lambda: ray.remote(CellRunner).options(**options).remote(
            str(folder), list(composed.words), composed.extra_dir, s.decode_gb
        )  # fmt: skip
        self.idle: list[Any] = [None] * max(1, count)  # started when first used
        self.busy: dict[Any, tuple[Cell, Any]] = {}

    @property
    def free(self) -> bool:
        return bool(self.idle)

    def start(self, cell: Cell, extra: list[str]) -> None:
        actor = self.idle.pop() or self.make()
        self.busy[actor.run.remote(cell, extra)] = (cell, actor)

    def wait(self) -> tuple[Cell, Result]:
        import ray

        (done,), _ = ray.wait(list(self.busy), num_returns=1)
        cell, actor = self.busy.pop(done)
        try:
            result: Result = ray.get(done)
            self.idle.append(actor)
        except ray.exceptions.RayError as error:
            self.idle.append(None)
            first = (str(error).strip().splitlines() or [""])[0]
            result = about(cell) | {"status": "failed", "error": f"{type(error).__name__}: {first}"}
        return cell, result

    def close(self) -> None:
        import ray

        for actor in [*self.idle, *(actor for _, actor in self.busy.values())]:
            if actor is not None:
                ray.kill(actor)
