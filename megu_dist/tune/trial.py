"""One trial of a sweep: a setting, tried with every seed, in a process that goes on to the next one.

A trial's numbers are kept in ``trials/<name>/seed<n>/result.json`` with the hash of what they follow from, so a setting
that was tried is never tried again, whichever search proposes it.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megu_dist.config.compose import Composed, load
from megu_dist.config.registry import lookup
from megu_dist.config.schema import keyed
from megu_dist.engine import checkpoints
from megu_dist.metrics.objective import gaps, objective
from megu_dist.models.checkpoint import Checkpoint, open_checkpoint
from megu_dist.pipeline import Pipeline
from megu_dist.store import content_key, write_json
from megu_dist.tune.space import words as make_words
from megu_dist.workshop import SECONDS, Workshop, here_if_one_worker, quoted, tidy

RESULT = "result.json"
# What a trial tells Ray Tune, beside the score and the gaps: averages over seeds.
TOLD = {
    "acc_forget": ("unlearned", "acc_forget_test"),
    "acc_retain": ("unlearned", "acc_retain_test"),
    "mia": ("unlearned", "mia"),
    "tow": ("versus_retrained", "tow"),
    "tow_mia": ("versus_retrained", "tow_mia"),
    "kl_forget": ("versus_retrained", "kl_forget"),
}
_WORKSHOPS: dict[str, Workshop] = {}  # of this process, which Ray Tune hands one trial after the other


@dataclass(frozen=True)
class Study:
    """What all trials of a sweep know."""

    folder: str
    words: tuple[str, ...]
    extra_dir: str | None
    seeds: tuple[int, ...]
    stepwise: bool  # report after each epoch
    hand_over: bool  # checkpoints go to Ray Tune, which may give them to another trial
    decode_gb: float
    threads: int

    def where(self, config: Mapping[str, Any]) -> Path:
        """The folder of a setting."""
        name = hashlib.sha256("\n".join(sorted(make_words(config))).encode()).hexdigest()[:12]
        return Path(self.folder) / "trials" / name


def trial(config: dict[str, Any], study: Study) -> None:
    """Ray Tune's function: reports the trial's numbers, after each epoch or at its end."""
    from ray import tune

    os.environ.setdefault("MEGU_THREADS", str(study.threads))
    found = tune.get_checkpoint()
    start = None if found is None else Path(found.path)
    where = study.where(config)
    if study.hand_over:  # the same settings may come again with another past
        where = where.with_name(f"{tune.get_context().get_trial_id()}-{_epochs_done(start)}")
    try:
        _Trial(study, config, where).run(start, tune.report)
    except Exception:
        where.mkdir(parents=True, exist_ok=True)
        (where / "error.txt").write_text(traceback.format_exc())
        raise


class _Trial:
    def __init__(self, study: Study, config: Mapping[str, Any], where: Path) -> None:
        import megu_dist  # noqa: F401  (registers the CIFAR ResNet)

        self.study, self.where, self.words = study, where, make_words(config)
        if study.folder not in _WORKSHOPS:
            _warm_up()
            _WORKSHOPS[study.folder] = Workshop(Path(study.folder), study.decode_gb)
        self.workshop = _WORKSHOPS[study.folder]

    def run(self, start: Path | None, report: Any) -> None:
        runs = [_Run(self, seed) for seed in self.study.seeds]
        epochs = runs[0].epochs
        ends: Sequence[int | None] = range(_epochs_done(start) + 1, epochs + 1) if self.study.stepwise else [None]
        for until in ends:
            began = time.monotonic()
            rows = [run.to(until, start) for run in runs]
            told = _told(rows) | {"where": self.where.name, "epochs": until or epochs}
            told["trial_seconds"] = round(time.monotonic() - began, 3)
            if self.study.hand_over and until is not None:
                self._hand_over(runs[0], until, told, report)
            else:
                report(told)
        tidy_runs(self.where)

    def _hand_over(self, run: _Run, until: int, told: dict[str, Any], report: Any) -> None:
        """Gives Ray Tune the newest checkpoint, with which it may start another trial."""
        import tempfile

        from ray import tune

        newest = run.newest()
        with tempfile.TemporaryDirectory() as folder:
            if newest is not None:
                shutil.copytree(newest, Path(folder) / "checkpoint")
            write_json(Path(folder) / "epochs.json", until)
            report(told, checkpoint=tune.Checkpoint.from_directory(folder))


class _Run:
    """A trial's work with one seed."""

    def __init__(self, trial: _Trial, seed: int) -> None:
        study, self.workshop = trial.study, trial.workshop
        self.folder, self.seed, self.words = trial.where / f"seed{seed}", seed, trial.words
        self.folder.mkdir(parents=True, exist_ok=True)
        own = [f"seed.unlearn={seed}", f"seed.evaluate={seed}", f"run.dir={quoted(trial.where)}"]
        own += [f"run.name=seed{seed}", f"oracle.store={quoted(Path(study.folder) / 'ratings')}"]
        self.composed: Composed = load([*study.words, *trial.words, *own], (), study.extra_dir)

    @property
    def epochs(self) -> int:
        return self.composed.settings.train.epochs

    def to(self, until: int | None, start: Path | None) -> dict[str, Any]:
        """The numbers after ``until`` epochs (none: all), worked out unless they are there."""
        s = self.composed.settings
        with here_if_one_worker(s):
            pipeline = self.workshop.pipeline(s, self.folder)
            key = self._key(pipeline)
            done = read(self.folder)
            if done is not None and done["key"] == key and done["epochs"] >= (until or self.epochs):
                return done
            self.workshop.decode(s)
            pipeline.check_request()
            pipeline.check_method()
            models = self.workshop.models(pipeline)
            begun = None if start is None or not (start / "checkpoint").is_dir() else start / "checkpoint"
            metrics = self._unlearn(pipeline, models, until, begun)
        result = {"key": key, "seed": self.seed, "words": self.words, "epochs": until or self.epochs, **metrics}
        write_json(self.folder / RESULT, result)
        return result

    def _unlearn(
        self, pipeline: Pipeline, models: dict[str, Checkpoint], until: int | None, start: Path | None
    ) -> dict[str, Any]:
        metrics, _ = self.workshop.unlearn(pipeline, models, until, start)
        scenario = self.composed.settings.forget.scenario
        forget, retain = gaps(metrics["models"], scenario)
        seconds = {name: metrics["seconds"].get(name, 0.0) for name in SECONDS}
        found = {"score": objective(metrics["models"], scenario), "forget_gap": forget, "retain_gap": retain}
        found |= {"seconds": round(sum(seconds.values()), 3), "models": metrics["models"]}
        return found | ({"versus_retrained": metrics["versus_retrained"]} if "versus_retrained" in metrics else {})

    def _key(self, pipeline: Pipeline) -> str:
        """What the numbers follow from."""
        s = pipeline.settings
        settings = asdict(s)
        dropped = ["run", "report", "benchmark", "analyze", "sweep", "request"]
        if not lookup("method", s.method.name).target.needs_perturbed:
            dropped += ["oracle", "perturb"]
        for name in dropped:
            del settings[name]
        settings = {k: keyed(part) if isinstance(part, dict) else part for k, part in settings.items()}
        settings["model"]["path"] = open_checkpoint(str(s.model.path)).fingerprint()
        if s.evaluate.retrained:
            settings["evaluate"]["retrained"] = open_checkpoint(s.evaluate.retrained).fingerprint()
        return content_key({"settings": settings, "data": pipeline.source.fingerprint()})

    def newest(self) -> Path | None:
        """The newest checkpoint, of whichever key."""
        roots = [path for path in (self.folder / "checkpoints").glob("*") if path.is_dir()]
        found = [made for root in roots if (made := checkpoints.newest(root)) is not None]
        return max(found, key=lambda path: checkpoints.progress_of(path).order, default=None)


def _warm_up() -> None:
    """Imports what stages import in their functions, so that a process's first trial is not charged for it."""
    for name in ("torch", "transformers", "sklearn.linear_model", "megu_dist.engine.context", "megu_dist.perturb.actor",
                 "megu_dist.metrics.predict", "megu_dist.metrics.deep"):  # fmt: skip
        importlib.import_module(name)


def read(folder: Path) -> dict[str, Any] | None:
    """What is recorded of a trial with one seed."""
    path = folder / RESULT
    return json.loads(path.read_text()) if path.is_file() else None


def tidy_runs(where: Path) -> None:
    """Leaves the numbers only."""
    for folder in where.glob("seed*"):
        tidy(folder)


def _told(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Averages over seeds."""
    found = {name: _mean([row[name] for row in rows]) for name in ("score", "forget_gap", "retain_gap", "seconds")}
    for name, (part, key) in TOLD.items():
        nested = [row["models"] if part == "unlearned" else row for row in rows]
        values = [row[part][key] for row in nested if key in row.get(part, {})]
        if len(values) == len(rows):
            found[name] = _mean(values)
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _epochs_done(start: Path | None) -> int:
    return 0 if start is None else int(json.loads((start / "epochs.json").read_text()))
