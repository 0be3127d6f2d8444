"""Checks a sweep, has Ray Tune try its settings, and collects what came of them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megu_dist import workshop
from megu_dist.config.compose import Composed, load
from megu_dist.config.schema import MeguSettings
from megu_dist.config.validate import check as check_settings
from megu_dist.config.validate import check_method
from megu_dist.errors import UserError
from megu_dist.pipeline import Pipeline
from megu_dist.progress import Reporter
from megu_dist.store import content_key, write_json
from megu_dist.tune import choose
from megu_dist.tune.space import Dimension, read_space, shown, words
from megu_dist.tune.trial import Study, read, tidy_runs, trial

STATE = "study.json"  # in the run folder: the key of the Ray Tune experiment that is kept there
DRIVER_CPUS = 0.01  # of a trial whose work is done by workers of its own; Ray Tune does not take 0
MOST = 10_000  # settings of a grid
# Settings that may change in mid-training, as population-based training does.
LIVE = ("method.", "train.lr", "train.momentum", "train.weight_decay", "train.label_smoothing", "train.clip_grad_norm")
ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # loggers are those asked for
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends a sweep as it ends every other command
    "TUNE_GLOBAL_CHECKPOINT_S": "5",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


def check(composed: Composed) -> list[Dimension]:
    """The space. Raises :class:`UserError` for a request, a value or a setting that no trial could work with."""
    s = composed.settings
    check_settings(s)
    space = read_space(s.sweep, composed.extra_dir)
    choose.check(s)
    _check_seeds(s, space)
    for dimension in space:
        if s.sweep.scheduler == "pbt" and not dimension.key.startswith(LIVE):
            raise UserError(
                f"sweep.space.{dimension.key}: sweep.scheduler=pbt changes settings in mid-training, which this one cannot; "
                "use method.… and train.lr, or another scheduler"
            )
    with tempfile.TemporaryDirectory(prefix="megu-check-") as name:
        folder = Path(name)
        if "validation" not in Pipeline(s, folder, Reporter()).source.splits:
            raise UserError("sweeps are judged on validation images: set data.validation_fraction=0.1, say")
        first = {dimension.key: dimension.probes()[0] for dimension in space}
        for dimension in space:
            for value in dimension.probes():
                where = f"sweep.space.{dimension.key}: {shown(value)}"
                _check_value(composed, folder, first | {dimension.key: value}, where)
    return space


def _check_seeds(s: MeguSettings, space: Sequence[Dimension]) -> None:
    sweep = s.sweep
    if not sweep.seeds or len(set(sweep.seeds)) < len(sweep.seeds) or min(sweep.seeds) < 0:
        raise UserError(f"sweep.seeds={sweep.seeds}: give different seeds, at least one, none below 0")
    if sweep.search == "grid":
        count = 1
        for dimension in space:
            count *= len(dimension.values)
        if count > MOST:
            raise UserError(f"sweep.space: a grid of {count:,} settings; leave some out, or set sweep.search=random")
    if sweep.scheduler == "none":
        return
    if s.train.epochs < 2 and all(dimension.key != "train.epochs" for dimension in space):
        raise UserError(
            f"sweep.scheduler={sweep.scheduler} looks at trials after each epoch, and train.epochs={s.train.epochs}: "
            "set train.epochs=2 or more, or sweep.scheduler=none"
        )
    if sweep.scheduler == "pbt" and len(sweep.seeds) > 1:
        raise UserError("sweep.scheduler=pbt changes one training as it goes: give one seed in sweep.seeds")
    if sweep.scheduler == "pbt" and workshop.several_workers(s):
        raise UserError(
            "sweep.scheduler=pbt trains in the trials' own processes: use engine=ddp and train.num_workers=1 with it"
        )
    if sweep.scheduler == "pbt" and sweep.search == "optuna":
        raise UserError("sweep.scheduler=pbt chooses settings itself: use sweep.search=random or grid with it")


def _check_value(composed: Composed, folder: Path, config: dict[str, Any], where: str) -> None:
    try:
        found = load([*composed.words, *base_words(composed, []), *words(config)], (), composed.extra_dir)
        pipeline = Pipeline(found.settings, folder, Reporter())
        pipeline.check_request()
        check_method(found.settings)
        if pipeline.needs_perturbed:
            pipeline.check_oracle()
        pipeline.open_model(found.settings.model.path, "model.path")
        if found.settings.evaluate.retrained:
            pipeline.open_model(found.settings.evaluate.retrained, "evaluate.retrained")
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def base_words(composed: Composed, space: Sequence[Dimension]) -> list[str]:
    """Words that all trials have after the user's: scored on validation images, noise made for all of them at once."""
    found = ["evaluate.split=validation", "evaluate.deep=[]", *workshop.path_words(composed.settings)]
    strengths = {d.key: max(map(float, d.probes())) for d in space if d.key in ("method.alpha", "method.beta")}
    if strengths and composed.settings.perturb.noise == "auto":
        method = composed.settings.method
        alpha, beta = (strengths.get(f"method.{name}", getattr(method, name, 0)) for name in ("alpha", "beta"))
        made = {(True, True): "both", (True, False): "positive", (False, True): "negative"}
        found.append(f"perturb.noise={made.get((alpha > 0, beta > 0), 'none')}")
    return found


def run(composed: Composed, space: list[Dimension], folder: Path, reporter: Reporter) -> list[dict[str, Any]]:
    """A row per setting and seed: its values, status and numbers."""
    from ray import tune

    from megu_dist.tune.watch import REPORTER

    s = composed.settings
    os.environ.update(ENVIRONMENT)
    count, resources = _room(s)
    study = Study(
        folder=str(folder),
        words=(*composed.words, *base_words(composed, space)),
        extra_dir=composed.extra_dir,
        seeds=tuple(s.sweep.seeds),
        stepwise=s.sweep.scheduler != "none",
        hand_over=s.sweep.scheduler == "pbt",
        decode_gb=s.sweep.decode_gb,
        threads=max(1, (os.cpu_count() or 1) // count),
    )
    _prepare(composed, space, folder, reporter)
    trainable = tune.with_resources(tune.with_parameters(trial, study=study), resources)
    total = choose.count(s.sweep, space)
    tuner = _tuner(s, space, folder, study, trainable, count)
    REPORTER[:] = [reporter]
    with reporter.stage("sweep", total, "trials"):
        results = tuner.fit()
    rows: list[dict[str, Any]] = []
    for number, result in enumerate(results):
        rows += _rows(study, number, dict(result.config), result.metrics or {}, result.error)
    for where in (folder / "trials").glob("*"):
        tidy_runs(where)  # of trials that a scheduler stopped
    return rows


def _room(s: MeguSettings) -> tuple[int, dict[str, float]]:
    """How many trials go on at a time, and what each asks of Ray.

    With several workers a trial is a driver that starts a Ray Train job: its workers take their resources beside it, which
    Ray Tune does not see. So only as many trials go on as the cluster can hold with all their workers, and a CPU each to
    read data; more would wait for each other for ever.
    """
    import ray

    count = workshop.runners(s, s.sweep.runners, s.sweep.num_gpus)
    if s.sweep.scheduler == "pbt":  # its population is held back by resources alone
        cpus = max(1.0, ray.cluster_resources()["CPU"] // count)
        return count, {"CPU": cpus} | ({"GPU": s.sweep.num_gpus} if s.sweep.num_gpus else {})
    if not workshop.several_workers(s):
        return count, {"CPU": 1.0} | ({"GPU": s.sweep.num_gpus} if s.sweep.num_gpus else {})
    have, train = ray.cluster_resources(), s.train
    fits = int(have.get("CPU", 1) / (DRIVER_CPUS + train.num_workers * train.num_cpus + 1))
    if train.use_gpu:
        fits = min(fits, int(have.get("GPU", 0) / train.num_workers))
    if fits < 1:
        raise UserError(
            f"a trial with train.num_workers={train.num_workers} needs {train.num_workers * train.num_cpus + 1:g} CPUs"
            + (f" and {train.num_workers} GPUs" if train.use_gpu else "")
            + f"; the cluster has {have.get('CPU', 0):g} and {have.get('GPU', 0):g}"
        )
    return min(fits, s.sweep.runners or fits), {"CPU": DRIVER_CPUS}


def _prepare(composed: Composed, space: Sequence[Dimension], folder: Path, reporter: Reporter) -> None:
    """Has the oracle asked once, by the driver; trials then find its ratings stored, and need no oracle of their own."""
    from megu_dist import pipeline as stages

    (folder / "trials").mkdir(parents=True, exist_ok=True)
    names: list[Any] = next((list(d.values) for d in space if d.key == "oracle"), [None])
    for name in names:
        own = [
            f"run.dir={workshop.quoted(folder)}",
            "run.name=oracle",
            f"oracle.store={workshop.quoted(folder / 'ratings')}",
        ]
        own += workshop.path_words(composed.settings)
        found = load([*composed.words, *([f"oracle={name}"] if name else []), *own], (), composed.extra_dir)
        pipeline = stages.Pipeline(found.settings, folder / "oracle", reporter)
        if pipeline.needs_perturbed:
            pipeline.check_request()
            stages.oracle(pipeline)


def _tuner(
    s: MeguSettings,
    space: Sequence[Dimension],
    folder: Path,
    study: Study,
    trainable: Any,
    count: int,
) -> Any:
    """A Tuner that goes on with the experiment in the folder if it is of the same sweep."""
    from ray import tune

    from megu_dist.tune.watch import Watch

    key = content_key({"study": asdict(study), "space": [asdict(d) for d in space], "sweep": _kept(s)})[:12]
    storage = folder / "tune"
    state = storage / key
    if s.run.resume and tune.Tuner.can_restore(str(state)):
        try:
            return tune.Tuner.restore(str(state), trainable, resume_unfinished=True, restart_errored=True)
        except Exception as error:  # a snapshot that was cut off; what trials found is kept beside them
            print(f"the state of Ray Tune in {state} cannot be read ({error}); finished trials are kept", flush=True)
    shutil.rmtree(state, ignore_errors=True)
    write_json(folder / STATE, {"key": key})
    callbacks = [Watch(), *choose.loggers(s, folder)]
    return tune.Tuner(
        trainable,
        param_space=choose.param_space(s.sweep, space),
        tune_config=tune.TuneConfig(
            search_alg=choose.searcher(s.sweep, count),
            scheduler=choose.scheduler(s, space),
            num_samples=1 if s.sweep.search == "grid" else s.sweep.trials,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=key,
            storage_path=str(storage),
            failure_config=tune.FailureConfig(max_failures=s.sweep.retries),
            callbacks=callbacks,
            verbose=0,
        ),
    )


def _kept(s: MeguSettings) -> dict[str, Any]:
    """The settings of the sweep that its state depends on."""
    return {
        k: v for k, v in asdict(s.sweep).items() if k not in ("runners", "num_gpus", "retries", "loggers", "mlflow_uri")
    }


def _rows(
    study: Study, number: int, config: dict[str, Any], metrics: dict[str, Any], error: BaseException | None
) -> list[dict[str, Any]]:
    """What is known of a trial, seed by seed."""
    where = study.where(config)
    where = where.with_name(metrics.get("where", where.name))
    rows = []
    for seed in study.seeds:
        row: dict[str, Any] = {"trial": number, "name": where.name, "seed": seed, "config": config}
        found = read(where / f"seed{seed}")
        if error is not None or found is None:
            text = str(error or "no result").strip().splitlines() or [type(error).__name__]
            rows.append(row | {"status": "failed", "error": text[-1]})
            continue
        rows.append(row | {"status": "done", **found, "trial_seconds": metrics.get("trial_seconds")})
    return rows
