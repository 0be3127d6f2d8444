"""Which settings come next: Ray Tune's search algorithms, schedulers and loggers, as the settings of the sweep say."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megu_dist.config.schema import MeguSettings, SweepSettings
from megu_dist.errors import UserError, nearest
from megu_dist.tune.space import Dimension

# Numbers of a trial that can be objectives, and the better side of each. The last need a retrained model.
SIDES = {
    "score": "max",
    "forget_gap": "min",
    "retain_gap": "min",
    "seconds": "min",
    "tow": "max",
    "tow_mia": "max",
    "kl_forget": "min",
}
NEED_RETRAINED = ("tow", "tow_mia", "kl_forget")
SEVERAL = ("forget_gap", "retain_gap", "seconds")
LOGGERS = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}
REDUCTION = 3  # one trial in so many goes on past each rung (Li et al. 2020, arXiv 1810.05934, use 4)


def objectives(sweep: SweepSettings) -> tuple[str, ...]:
    """What is optimised: as asked; else the three gaps together where the search can do that, else their one score."""
    if sweep.objectives:
        return tuple(sweep.objectives)
    return SEVERAL if sweep.search == "optuna" and sweep.scheduler == "none" else ("score",)


def check(s: MeguSettings) -> None:
    """Raises :class:`UserError` for objectives that are unknown or too many, and loggers that are not installed."""
    sweep = s.sweep
    for name in objectives(sweep):
        if name not in SIDES:
            raise UserError(f"sweep.objectives: there is no {name!r}; {nearest(name, list(SIDES))}")
        if name in NEED_RETRAINED and not s.evaluate.retrained:
            raise UserError(f"sweep.objectives: {name} compares with the retrained model: set evaluate.retrained")
    several = len(objectives(sweep)) > 1
    if several and (sweep.scheduler != "none" or sweep.search != "optuna"):
        by = f"sweep.scheduler={sweep.scheduler}" if sweep.scheduler != "none" else f"sweep.search={sweep.search}"
        raise UserError(
            f"sweep.objectives={list(sweep.objectives)}: {by} takes one; several need sweep.search=optuna alone"
        )
    if sweep.search == "optuna" and importlib.util.find_spec("optuna") is None:
        raise UserError("sweep.search=optuna needs optuna: pip install 'megu-dist[sweep]'")
    for name in sweep.loggers:
        if name not in LOGGERS:
            raise UserError(f"sweep.loggers: there is no {name!r}; {nearest(name, list(LOGGERS))}")
        if importlib.util.find_spec(LOGGERS[name]) is None:
            raise UserError(f"sweep.loggers: {name} is not installed: pip install 'megu-dist[{name}]'")


def count(sweep: SweepSettings, space: Sequence[Dimension]) -> int:
    """How many settings will be tried."""
    if sweep.search != "grid":
        return sweep.trials
    total = 1
    for dimension in space:
        total *= len(dimension.values)
    return total


def param_space(sweep: SweepSettings, space: Sequence[Dimension]) -> dict[str, Any]:
    """As Ray Tune takes it."""
    from ray import tune

    if sweep.search == "grid":
        return {dimension.key: tune.grid_search(list(dimension.values)) for dimension in space}
    return {dimension.key: dimension.domain() for dimension in space}


def searcher(sweep: SweepSettings, concurrent: int) -> Any:
    """The search algorithm, which has ``concurrent`` trials going on."""
    if sweep.search == "optuna":
        from ray.tune.search import ConcurrencyLimiter
        from ray.tune.search.optuna import OptunaSearch

        names = objectives(sweep)
        modes = [SIDES[name] for name in names]
        several = len(names) > 1
        metric, mode = (list(names), modes) if several else (names[0], modes[0])
        search = OptunaSearch(metric=metric, mode=mode, seed=sweep.search_seed)
        return ConcurrencyLimiter(search, max_concurrent=concurrent)
    from ray.tune.search import BasicVariantGenerator

    if sweep.scheduler == "pbt":  # takes turns among the whole population, as far as resources go
        return BasicVariantGenerator(random_state=sweep.search_seed)
    return BasicVariantGenerator(max_concurrent=concurrent, random_state=sweep.search_seed)


def scheduler(s: MeguSettings, space: Sequence[Dimension]) -> Any:
    """What stops trials, or changes them, after an epoch."""
    from ray.tune import schedulers

    name = objectives(s.sweep)[0]
    if s.sweep.scheduler == "asha":
        most = max([s.train.epochs, *(int(v) for d in space if d.key == "train.epochs" for v in d.probes())])
        return schedulers.ASHAScheduler(
            time_attr="training_iteration",
            metric=name,
            mode=SIDES[name],
            max_t=most + 1,  # a trial that reaches its last epoch ends by itself
            grace_period=1,
            reduction_factor=REDUCTION,
        )
    if s.sweep.scheduler == "pbt":
        return schedulers.PopulationBasedTraining(
            time_attr="training_iteration",
            metric=name,
            mode=SIDES[name],
            perturbation_interval=1,
            hyperparam_mutations={d.key: list(d.values) if d.values else d.domain() for d in space},
            quantile_fraction=0.25,
            require_attrs=True,
            synch=False,
        )
    return schedulers.FIFOScheduler()


def loggers(s: MeguSettings, folder: Path) -> list[Any]:
    """Ray Tune's own callbacks; the JSON lines are where Ray Tune itself finds a trial's numbers again."""
    from ray.tune.logger import JsonLoggerCallback

    found: list[Any] = [JsonLoggerCallback()]
    name = folder.name
    for logger in s.sweep.loggers:
        if logger == "tensorboard":
            from ray.tune.logger import TBXLoggerCallback

            found.append(TBXLoggerCallback())
        elif logger == "mlflow":
            from ray.air.integrations.mlflow import MLflowLoggerCallback

            uri = s.sweep.mlflow_uri or f"sqlite:///{folder / 'mlflow.db'}"
            found.append(MLflowLoggerCallback(tracking_uri=uri, experiment_name=name))
        else:
            from ray.air.integrations.wandb import WandbLoggerCallback

            found.append(WandbLoggerCallback(project=name))
    return found
