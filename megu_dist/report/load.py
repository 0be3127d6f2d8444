"""What a finished run left in its folder, read into typed records. What metrics.json holds is not computed again"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from megu_dist.errors import UserError

SCHEMA = 1
MODELS = ("original", "unlearned", "retrained")
Values = dict[str, float | None]


@dataclass(frozen=True)
class RunMetrics:
    """metrics.json of one run: all that a row of a comparison needs."""

    run_dir: Path
    scenario: str
    forget_count: int
    forget_classes: tuple[str, ...]
    already_classes: tuple[str, ...]  # forgotten by earlier requests
    method: str
    class_names: tuple[str, ...]
    models: dict[str, Values]  # original, unlearned, retrained (where given) → metric → value
    versus_retrained: Values  # empty without a retrained model
    floor: Values  # the same distances for a second retrained model; empty where none was given
    seconds: Values
    oracle: dict[str, Any]
    engine: dict[str, Any]
    environment: dict[str, Any]

    @classmethod
    def load(cls, run_dir: Path) -> RunMetrics:
        """Read ``run_dir/metrics.json``; a ``UserError`` says what is missing and which command makes it."""
        run_dir = Path(run_dir)
        path = _required(run_dir, "metrics.json", "evaluate")
        raw = _json_object(path, "evaluate")
        if raw.get("schema") != SCHEMA:
            raise UserError(
                f"{path} has schema {raw.get('schema')!r}, this version reads schema {SCHEMA}: "
                f"run {_command(run_dir, 'evaluate')} again"
            )
        models = {name: _values(raw.get("models"), name) for name in MODELS}
        for name in ("original", "unlearned"):
            if not models[name]:
                raise UserError(
                    f"{path} holds no metrics of the {name} model: run {_command(run_dir, 'evaluate')} again"
                )
        forget = _mapping(raw.get("forget"))
        return cls(
            run_dir=run_dir,
            scenario=str(raw.get("scenario", "class")),
            forget_count=int(forget.get("count") or 0),
            forget_classes=tuple(str(name) for name in forget.get("classes") or ()),
            already_classes=tuple(str(name) for name in _mapping(raw.get("already")).get("classes") or ()),
            method=str(raw.get("method", "?")),
            class_names=tuple(str(name) for name in raw.get("class_names") or ()),
            models={name: values for name, values in models.items() if values},
            versus_retrained=_values(raw, "versus_retrained"),
            floor=_values(raw, "versus_floor"),
            seconds=_values(raw, "seconds"),
            oracle=dict(_mapping(raw.get("oracle"))),
            engine=dict(_mapping(raw.get("engine"))),
            environment=dict(_mapping(raw.get("environment"))),
        )

    @property
    def name(self) -> str:
        """The run folder's own name."""
        return self.run_dir.resolve().name

    @property
    def forgotten(self) -> frozenset[int]:
        """Label-space classes that were forgotten as a whole, now or before."""
        named = {*self.already_classes, *(self.forget_classes if self.scenario == "class" else ())}
        return frozenset(index for index, name in enumerate(self.class_names) if name in named)

    def value(self, model: str, metric: str) -> float | None:
        """A model's metric, or None where it was not measured."""
        return self.models.get(model, {}).get(metric)

    @property
    def unlearning_seconds(self) -> float | None:
        """Seconds spent on perturbing and fine-tuning, as far as they were measured."""
        parts = [self.seconds.get(stage) for stage in ("perturb", "finetune")]
        known = [part for part in parts if part is not None]
        return sum(known) if known else None


@dataclass(frozen=True)
class Predictions:
    """One model's predictions, a row per image."""

    part: np.ndarray  # retain_train | forget_train | retain_test | forget_test
    label: np.ndarray
    prediction: np.ndarray

    @classmethod
    def load(cls, path: Path) -> Predictions:
        """Read the three columns the figures use; probabilities stay on disk."""
        table = _parquet(path, ["part", "label", "prediction"])
        return cls(
            part=np.asarray(table.column("part").to_pylist(), dtype=np.str_),
            label=table.column("label").to_numpy(),
            prediction=table.column("prediction").to_numpy(),
        )

    def select(self, *parts: str) -> Predictions:
        """The rows of the named parts."""
        keep = np.isin(self.part, parts)
        return Predictions(self.part[keep], self.label[keep], self.prediction[keep])

    def __len__(self) -> int:
        return len(self.label)


@dataclass(frozen=True)
class Transition:
    """transition.json: T with the names of its rows and columns."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    matrix: np.ndarray  # (R, C), rows sum to 1
    tau: float | None


@dataclass(frozen=True)
class RunResults:
    """Everything a report shows of one run."""

    metrics: RunMetrics
    config: dict[str, Any]
    config_text: str
    manifest: dict[str, Any]  # empty when the split stage left none
    transition: Transition | None
    history: tuple[dict[str, Any], ...]  # logging events in training order, each step once
    predictions: dict[str, Predictions]
    perturbed_files: tuple[Path, ...]

    @classmethod
    def load(cls, run_dir: Path) -> RunResults:
        """Read a finished run; a ``UserError`` names a missing file and the command that makes it."""
        run_dir = Path(run_dir)
        if not run_dir.is_dir():
            raise UserError(f"there is no run folder {run_dir}: give the folder that `megu unlearn` wrote")
        config_path = _required(run_dir, "config.yaml", "unlearn")
        metrics = RunMetrics.load(run_dir)
        files = {name: run_dir / "predictions" / f"{name}.parquet" for name in MODELS}
        for name in ("original", "unlearned"):
            _required(run_dir, f"predictions/{name}.parquet", "evaluate")
        manifest = run_dir / "split" / "manifest.json"
        return cls(
            metrics=metrics,
            config=_yaml(config_path),
            config_text=config_path.read_text(encoding="utf-8"),
            manifest=_json_object(manifest, "unlearn") if manifest.is_file() else {},
            transition=load_transition(run_dir / "transition.json"),
            history=_history(run_dir / "history.jsonl"),
            predictions={name: Predictions.load(path) for name, path in files.items() if path.is_file()},
            perturbed_files=tuple(sorted((run_dir / "perturbed").glob("*.parquet"))),
        )

    @cached_property
    def noise_strengths(self) -> tuple[float, float]:
        """α and β of the run's method; 0 for a method that has none."""
        method = _mapping(self.config.get("method"))
        return float(method.get("alpha") or 0.0), float(method.get("beta") or 0.0)


def _command(run_dir: Path, verb: str) -> str:
    return f"`megu {verb} run.dir={run_dir.parent} run.name={run_dir.name}`"


def _required(run_dir: Path, relative: str, verb: str) -> Path:
    path = run_dir / relative
    if not path.is_file():
        raise UserError(f"{path} is missing: make it with {_command(run_dir, verb)}")
    return path


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _values(parent: Any, key: str) -> Values:
    """The numbers of a JSON object; other entries are left out, null stays None."""
    numbers: Values = {}
    for name, value in _mapping(_mapping(parent).get(key)).items():
        if value is None:
            numbers[name] = None
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers[name] = float(value)
    return numbers


def _json_object(path: Path, verb: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not readable JSON ({error}): run `megu {verb}` again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object: run `megu {verb}` again")
    return value


def _yaml(path: Path) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from yaml import YAMLError  # type: ignore[import-untyped,unused-ignore]

    try:
        value = OmegaConf.to_container(OmegaConf.load(path))
    except (YAMLError, OSError) as error:
        raise UserError(f"{path} is not readable YAML: run `megu unlearn` again") from error
    return {str(key): item for key, item in value.items()} if isinstance(value, dict) else {}


def _parquet(path: Path, columns: list[str]) -> Any:
    import pyarrow.parquet as pq
    from pyarrow import ArrowException

    try:
        return pq.read_table(path, columns=columns)
    except (ArrowException, OSError) as error:
        raise UserError(f"{path} is not a readable Parquet file of predictions: run `megu evaluate` again") from error


def load_transition(path: Path) -> Transition | None:
    """T of ``transition.json``; None where there is none."""
    if not path.is_file():
        return None
    raw = _json_object(path, "oracle")
    rows, columns = tuple(map(str, raw.get("rows") or ())), tuple(map(str, raw.get("columns") or ()))
    matrix = np.asarray(raw.get("transition"), dtype=float)
    if matrix.shape != (len(rows), len(columns)):
        raise UserError(f"{path}: `transition` does not have a value for every row and column: run `megu oracle` again")
    tau = raw.get("tau")
    return Transition(rows, columns, matrix, float(tau) if isinstance(tau, int | float) else None)


def _history(path: Path) -> tuple[dict[str, Any], ...]:
    """Logging events by (epoch, step). A resumed run logs a step twice: the later one counts."""
    if not path.is_file():
        return ()
    events: dict[tuple[int, int], dict[str, Any]] = {}
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            event = json.loads(line)
            events[int(event["epoch"]), int(event["step"])] = event
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):  # a run that was cut off while it wrote
                break
            raise UserError(f"{path}, line {number} is not a logging event: run `megu unlearn` again") from error
    return tuple(events[key] for key in sorted(events))
