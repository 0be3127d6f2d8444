"""What a sweep leaves: ``sweep.parquet``, the best setting as an experiment file, importances, the Pareto front."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import OmegaConf

from megu_dist.config.compose import Composed, load
from megu_dist.config.registry import KINDS
from megu_dist.store import write_text
from megu_dist.tune.choose import SEVERAL
from megu_dist.tune.space import Dimension, shown, words

NUMBERS = ("score", "forget_gap", "retain_gap", "seconds", "trial_seconds")
PLAIN = ("trial", "name", "seed", "status", "error", "epochs", *NUMBERS)
FEWEST = 4  # settings that importances can be told from
KEPT = ("forget", "perturb", "train")  # sections of the best setting that its file holds, beside the components


@dataclass(frozen=True)
class Outcome:
    """``rows``: one per setting and seed; ``settings``: one per setting that worked, averages and ``<number>_std``."""

    rows: pd.DataFrame
    settings: pd.DataFrame
    keys: list[str]
    best: pd.Series | None
    config: dict[str, Any]  # of the best setting
    front: list[int]  # positions in ``settings`` that no other setting beats in all of the gaps and the time
    importances: dict[str, float]


def flatten(rows: Iterable[dict[str, Any]], keys: Sequence[str]) -> pd.DataFrame:
    """A row per setting and seed, a column per swept key; nested numbers as ``unlearned/mia``."""
    found = []
    for row in rows:
        flat: dict[str, Any] = {name: row.get(name) for name in PLAIN}
        flat |= {key: row["config"].get(key) for key in keys}
        flat["words"] = " ".join(words(row["config"]))
        nested = dict(row.get("models", {}))
        if "versus_retrained" in row:
            nested["versus_retrained"] = row["versus_retrained"]
        for name, numbers in nested.items():
            flat |= {f"{name}/{key}": value for key, value in numbers.items()}
        found.append(flat)
    frame = pd.DataFrame(found)
    for key in keys:  # a column has one type
        if key in frame and len({type(value) for value in frame[key]}) > 1:
            numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in frame[key])
            frame[key] = frame[key].astype(float) if numbers else frame[key].map(shown)
    return frame


def summarise(rows: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Averages and standard deviations over seeds of every setting that all seeds finished, best score first."""
    done = rows[rows["status"] == "done"]
    left = rows[rows["status"] != "done"]["trial"]
    done = done[~done["trial"].isin(set(left))]
    if done.empty:
        return pd.DataFrame(columns=[*keys, "score"])
    numbers = [c for c in done if c not in ("trial", "seed", *keys) and pd.api.types.is_numeric_dtype(done[c])]
    by = done.groupby("trial", sort=False)
    table = by[[*keys, "name", "words"]].first().join(by[numbers].mean())
    spread = by[numbers].std(ddof=1).fillna(0.0).add_suffix("_std")
    return table.join(spread).sort_values("score", ascending=False, kind="stable").reset_index()


def outcome(rows: Sequence[dict[str, Any]], space: Sequence[Dimension]) -> Outcome:
    """Everything that is worked out from the trials."""
    keys = [dimension.key for dimension in space]
    frame = flatten(rows, keys)
    settings = summarise(frame, keys)
    best = None if settings.empty else settings.iloc[0]
    config = {} if best is None else next(row["config"] for row in rows if row["trial"] == best["trial"])
    return Outcome(frame, settings, keys, best, config, front(settings), importances(settings, space))


def front(settings: pd.DataFrame) -> list[int]:
    """Settings that no other is at least as good as in forget gap, retain gap and seconds, and better in one."""
    if settings.empty:
        return []
    points = settings[list(SEVERAL)].to_numpy(float)
    as_good = (points[:, None, :] <= points[None, :, :]).all(2)
    better = (points[:, None, :] < points[None, :, :]).any(2)
    return [int(i) for i in np.flatnonzero(~(as_good & better).any(0))]


def importances(settings: pd.DataFrame, space: Sequence[Dimension]) -> dict[str, float]:
    """Each key's share of what the score varies by: functional ANOVA (Hutter et al. 2014), as Optuna computes it."""
    try:
        import optuna
    except ModuleNotFoundError:
        return {}
    varied = [d for d in space if d.key in settings and settings[d.key].nunique() > 1]
    if len(settings) < FEWEST or not varied or settings["score"].nunique() < 2:
        return {}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions = {d.key: _distribution(d, settings[d.key]) for d in varied}
    study = optuna.create_study(direction="maximize")
    for _, row in settings.iterrows():
        values = {d.key: _plain(row[d.key], distributions[d.key]) for d in varied}
        study.add_trial(
            optuna.trial.create_trial(params=values, distributions=distributions, value=float(row["score"]))
        )
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return {k: float(v) for k, v in optuna.importance.get_param_importances(study, evaluator=evaluator).items()}


def _distribution(dimension: Dimension, values: pd.Series) -> Any:
    from optuna import distributions

    if dimension.values:
        numeric = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
        if numeric:
            return distributions.FloatDistribution(float(values.min()), float(values.max()))
        return distributions.CategoricalDistribution(sorted({shown(value) for value in values}))
    if dimension.integer:
        return distributions.IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return distributions.FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def _plain(value: Any, distribution: Any) -> Any:
    kind = type(distribution).__name__
    if kind == "CategoricalDistribution":
        return shown(value)
    return int(value) if kind == "IntDistribution" else float(value)


def write(found: Outcome, composed: Composed, folder: Path) -> None:
    """``sweep.parquet`` and ``experiment/recommended.yaml``."""
    found.rows.to_parquet(folder / ".sweep.parquet")
    (folder / ".sweep.parquet").rename(folder / "sweep.parquet")
    if found.best is not None:
        (folder / "experiment").mkdir(exist_ok=True)
        write_text(folder / "experiment" / "recommended.yaml", recommended(found, composed, folder))


def recommended(found: Outcome, composed: Composed, folder: Path) -> str:
    """An experiment file that ``megu unlearn --config-dir FOLDER experiment=recommended`` takes."""
    assert found.best is not None
    best = load([*composed.words, *words(found.config)], (), composed.extra_dir)
    settings, groups = _container(best), [kind for kind in KINDS if kind != "metric"]
    chosen = [f"{group}={settings[group]['name']}" for group in groups]
    defaults = _container(load(chosen, ()))
    body: dict[str, Any] = {"defaults": [{f"override /{group}": settings[group]["name"]} for group in groups]}
    for section in (*groups, *KEPT):
        changed = {k: v for k, v in settings[section].items() if v != defaults[section].get(k) and v is not None}
        if changed:
            body[section] = changed
    best_score = found.best["score"]
    head = (
        "# @package _global_\n"
        f"# The best of {len(found.settings)} settings by score on validation images: {best_score:.4f}"
        f" ± {_number(found.best['score_std']):.4f} over {found.rows['seed'].nunique()} seed(s).\n"
        f"# {found.best['words']}\n"
        f"# Use: megu unlearn --config-dir {folder} experiment=recommended\n"
    )
    return head + OmegaConf.to_yaml(OmegaConf.create(body))


def _container(composed: Composed) -> dict[str, Any]:
    found: Any = OmegaConf.to_container(OmegaConf.create(composed.yaml))
    return found


def summary_json(found: Outcome) -> str:
    """The main numbers, for programs."""
    best = (
        None
        if found.best is None
        else {key: _json(found.best[key]) for key in (*found.keys, "words", "score", *SEVERAL)}
    )
    failed = found.rows[found.rows["status"] != "done"]
    return json.dumps(
        {
            "settings": len(found.settings),
            "failed": sorted(set(failed["words"])) if len(failed) else [],
            "recommended": best,
            "importances": found.importances,
            "front": [str(found.settings.iloc[i]["words"]) for i in found.front],
        },
        indent=1,
    )


def _json(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _number(value: Any) -> float:
    return 0.0 if value is None or math.isnan(value) else float(value)
