"""Checks of single values that the types cannot express; run before anything starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from megu_dist.config.registry import components, lookup
from megu_dist.config.schema import ForgetSettings, MeguSettings
from megu_dist.errors import UserError, nearest

CHOICES = {
    "forget.scenario": ["class", "subclass", "random", "ids"],
    "perturb.label_policy": ["sample", "argmax"],
    "train.optimizer": ["sgd", "adamw"],
    "train.trainable": ["all", "head", "last_blocks", "lora"],
    "train.augment": ["none", "flip", "crop_flip"],
    "train.precision": ["auto", "fp32", "bf16"],
    "perturb.precision": ["auto", "fp32", "bf16"],
    "perturb.noise": ["auto", "both", "positive", "negative", "none"],
    "train.batch_norm": ["sync", "local", "frozen"],
    "train.stop": ["fixed", "calibrated"],
    "oracle.on_degenerate": ["stop", "fallback", "keep"],
    "evaluate.split": ["test", "validation"],
    "analyze.map": ["pca", "umap"],
    "sweep.search": ["grid", "random", "optuna"],
    "sweep.scheduler": ["none", "asha", "pbt"],
}

OFFLOAD = {"none": (0, 1, 2, 3), "optimizer": (1, 2, 3), "parameters": (3,)}  # ZeRO stages that can

_Rule = tuple[str, Callable[[float], bool]]
POSITIVE: _Rule = ("greater than 0", lambda v: v > 0)
NOT_NEGATIVE: _Rule = ("at least 0", lambda v: v >= 0)
AT_LEAST_ONE: _Rule = ("at least 1", lambda v: v >= 1)
SHARE: _Rule = ("at least 0 and below 1", lambda v: 0 <= v < 1)

RANGES: dict[str, _Rule] = {
    "data.test_fraction": SHARE,
    "data.validation_fraction": SHARE,
    "data.max_bad_fraction": SHARE,
    "oracle.num_replicas": AT_LEAST_ONE,
    "oracle.max_replicas": AT_LEAST_ONE,
    "oracle.max_batch_size": AT_LEAST_ONE,
    "oracle.pairs_per_request": AT_LEAST_ONE,
    "oracle.max_queued": AT_LEAST_ONE,
    "oracle.health_check_s": POSITIVE,
    "oracle.timeout_s": POSITIVE,
    "oracle.images": NOT_NEGATIVE,
    "oracle.image_side": ("at least 16 (pixels)", lambda v: v >= 16),
    "oracle.shortlist": NOT_NEGATIVE,
    "oracle.tail_mass": SHARE,
    "oracle.phrasings": AT_LEAST_ONE,
    "oracle.max_refused": SHARE,
    "oracle.price_prompt": NOT_NEGATIVE,
    "oracle.price_answer": NOT_NEGATIVE,
    "oracle.concurrency": AT_LEAST_ONE,
    "oracle.retries": NOT_NEGATIVE,
    "oracle.request_timeout_s": POSITIVE,
    "oracle.attempts": AT_LEAST_ONE,
    "oracle.prior": ("between 0 and 1", lambda v: 0 <= v <= 1),
    "oracle.min_mass": SHARE,
    "oracle.images_per_class": AT_LEAST_ONE,
    "perturb.draws": AT_LEAST_ONE,
    "perturb.tau": POSITIVE,
    "perturb.kappa": NOT_NEGATIVE,
    "perturb.probe_images": NOT_NEGATIVE,
    "perturb.probe_depth": ("greater than 0 and at most 1", lambda v: 0 < v <= 1),
    "perturb.epsilon": ("greater than 0 and at most 1 (pixel units)", lambda v: 0 < v <= 1),
    "perturb.steps": AT_LEAST_ONE,
    "perturb.batch_size": AT_LEAST_ONE,
    "perturb.num_actors": NOT_NEGATIVE,
    "train.num_workers": AT_LEAST_ONE,
    "train.min_workers": AT_LEAST_ONE,
    "train.last_blocks": AT_LEAST_ONE,
    "train.lora_rank": AT_LEAST_ONE,
    "train.layer_decay": ("greater than 0 and at most 1", lambda v: 0 < v <= 1),
    "train.num_cpus": POSITIVE,
    "train.epochs": AT_LEAST_ONE,
    "train.batch_size": AT_LEAST_ONE,
    "train.lr": POSITIVE,
    "train.momentum": SHARE,
    "train.weight_decay": NOT_NEGATIVE,
    "train.warmup_fraction": SHARE,
    "train.label_smoothing": SHARE,
    "train.clip_grad_norm": NOT_NEGATIVE,
    "train.calibrate_every": AT_LEAST_ONE,
    "train.checkpoint_every": AT_LEAST_ONE,
    "train.checkpoint_steps": AT_LEAST_ONE,
    "train.shuffle_window": AT_LEAST_ONE,
    "train.retain_per_epoch": AT_LEAST_ONE,
    "sweep.trials": AT_LEAST_ONE,
    "sweep.runners": NOT_NEGATIVE,
    "sweep.num_gpus": NOT_NEGATIVE,
    "sweep.retries": NOT_NEGATIVE,
    "sweep.decode_gb": NOT_NEGATIVE,
    "method.alpha": NOT_NEGATIVE,
    "method.beta": NOT_NEGATIVE,
    "method.lambda_forget": NOT_NEGATIVE,
    "method.label_smoothing": SHARE,
    "method.distill": ("between 0 and 1", lambda v: 0 <= v <= 1),
    "method.residual": SHARE,
    "method.gamma": ("greater than 0 and at most 1", lambda v: 0 < v <= 1),
    "method.temperature": POSITIVE,
    "method.delta": NOT_NEGATIVE,
    "method.max_epochs": NOT_NEGATIVE,
    "method.saliency": ("greater than 0 and at most 1", lambda v: 0 < v <= 1),
    "method.epsilon": ("greater than 0 and at most 1 (pixel units)", lambda v: 0 < v <= 1),
    "method.retain_weight": NOT_NEGATIVE,
    "method.noise_images": AT_LEAST_ONE,
    "method.noise_steps": AT_LEAST_ONE,
    "method.noise_lr": POSITIVE,
    "method.penalty": NOT_NEGATIVE,
    "method.impair_epochs": NOT_NEGATIVE,
    "method.dampening": POSITIVE,
    "method.strength": NOT_NEGATIVE,
    "train.micro_batch_size": AT_LEAST_ONE,
    "engine.zero_stage": ("0, 1, 2 or 3", lambda v: v in (0, 1, 2, 3)),
    "evaluate.relearn_lr": POSITIVE,
    "evaluate.relearn_epochs": POSITIVE,
    "evaluate.batch_size": AT_LEAST_ONE,
    "evaluate.retain_train_limit": AT_LEAST_ONE,
    "benchmark.trials": AT_LEAST_ONE,
    "benchmark.runners": NOT_NEGATIVE,
    "benchmark.num_gpus": NOT_NEGATIVE,
    "benchmark.retries": NOT_NEGATIVE,
    "benchmark.decode_gb": NOT_NEGATIVE,
    "run.logical_cpus": ("at least 4", lambda v: v >= 4),
    "run.object_store_gb": ("at least 0.1", lambda v: v >= 0.1),
    "run.placement_timeout_s": POSITIVE,
    "report.images": NOT_NEGATIVE,
    "analyze.images_per_class": AT_LEAST_ONE,
    "analyze.neighbours": AT_LEAST_ONE,
    "analyze.max_classes": AT_LEAST_ONE,
    "analyze.max_layers": AT_LEAST_ONE,
}


def check(settings: MeguSettings) -> None:
    """Raises :class:`UserError` for a value out of range, an unknown choice, or keys that contradict each other."""
    for key, choices in CHOICES.items():
        value = _get(settings, key)
        if value not in choices:
            raise UserError(f"{key}={value}: {nearest(value, choices)}")
    for key, (words, holds) in RANGES.items():
        value = _get(settings, key)
        if value is not None and not holds(float(value)):
            raise UserError(f"{key}={value}: must be {words}")
    deep = [name for name, metric in components("metric").items() if metric.target.scope == "deep"]
    for name in settings.evaluate.deep:
        if name not in deep:
            raise UserError(f"evaluate.deep={name}: {nearest(name, deep)}")
    offload, stage = getattr(settings.engine, "offload", "none"), getattr(settings.engine, "zero_stage", 0)
    if offload not in OFFLOAD:
        raise UserError(f"engine.offload={offload}: {nearest(offload, list(OFFLOAD))}")
    if stage not in OFFLOAD[offload]:
        raise UserError(
            f"engine.offload={offload} needs engine.zero_stage={' or '.join(map(str, OFFLOAD[offload]))}, not {stage}"
        )
    if (settings.train.min_workers or 1) > settings.train.num_workers:
        raise UserError(
            f"train.min_workers={settings.train.min_workers} must be at most "
            f"train.num_workers={settings.train.num_workers}"
        )
    if settings.train.batch_size < settings.train.num_workers:
        raise UserError(
            f"train.batch_size={settings.train.batch_size} is the global batch and must be at least "
            f"train.num_workers={settings.train.num_workers}"
        )


def check_forget(settings: MeguSettings) -> None:
    """Checks that the forget request is complete and consistent, without looking at the data."""
    forget = settings.forget
    if forget.scenario in ("class", "subclass") and not forget.classes:
        raise UserError("forget.classes is empty: name the classes to forget, as in forget.classes=[Shirt]")
    if forget.scenario == "random":
        if (forget.fraction is None) == (forget.count is None):
            raise UserError("forget.scenario=random needs one of forget.fraction=0.01 and forget.count=500")
        if forget.fraction is not None and not 0 < forget.fraction < 1:
            raise UserError(
                f"forget.fraction={forget.fraction}: must be between 0 and 1; forgetting everything is a deletion"
            )
        if forget.count is not None and forget.count < 1:
            raise UserError(f"forget.count={forget.count}: must be at least 1")
    _check_files(forget)
    if settings.train.stop == "calibrated":
        _check_calibrated(settings)


def _check_calibrated(settings: MeguSettings) -> None:
    if settings.forget.scenario in ("class", "subclass"):
        raise UserError(
            "train.stop=calibrated compares forget images with unseen images of the same classes, which suits "
            "forget.scenario=random or ids; use train.stop=fixed to forget a class"
        )
    if settings.data.validation_fraction == 0:
        raise UserError("train.stop=calibrated needs unseen images: set data.validation_fraction=0.1, say")


def _check_files(forget: ForgetSettings) -> None:
    if forget.scenario == "ids":
        if not forget.ids_file:
            raise UserError("forget.scenario=ids needs forget.ids_file=FILE with one image id per line")
        if not Path(forget.ids_file).expanduser().is_file():
            raise UserError(
                f"forget.ids_file={forget.ids_file}: no such file; give a text file with one image id per line"
            )
    if forget.already_file and not Path(forget.already_file).expanduser().is_file():
        raise UserError(
            f"forget.already_file={forget.already_file}: no such file; give a text file with one image id per line"
        )


def check_method(settings: MeguSettings) -> None:
    """Checks that the method can do what is asked of it."""
    method = lookup("method", settings.method.name).target
    if method.scenarios and settings.forget.scenario not in method.scenarios:
        raise UserError(
            f"method={settings.method.name} is defined for forget.scenario={' or '.join(method.scenarios)} only, "
            f"not for {settings.forget.scenario}; choose another method"
        )
    if method.whole_weights and getattr(settings.engine, "zero_stage", 0) == 3:
        raise UserError(
            f"method={settings.method.name} reads whole weights, which engine.zero_stage=3 shards: "
            "use engine.zero_stage=2 or less"
        )
    made, used = settings.perturb.noise, method(settings.method).noise() if method.needs_perturbed else "none"
    if made not in ("auto", "both", used) and used != "none":
        raise UserError(
            f"perturb.noise={made}: this method.alpha and method.beta make use of {used}; use auto or {used}"
        )
    if settings.train.trainable == "lora" and not method.low_rank:
        raise UserError(
            f"method={settings.method.name} picks single weights, which train.trainable=lora does not train: "
            "use train.trainable=all, head or last_blocks"
        )


def resolve_classes(wanted: list[object], class_names: list[str], key: str = "forget.classes") -> list[int]:
    """Names or indices → sorted labels. A name wins over an index. Raises :class:`UserError` for unknown ones."""
    labels = set()
    for item in wanted:
        name = str(item)
        if name in class_names:
            labels.add(class_names.index(name))
        elif name.isdigit() and int(name) < len(class_names):
            labels.add(int(name))
        else:
            raise UserError(f"{key}: the data has no class {name!r}; {nearest(name, class_names)}")
    if len(labels) == len(class_names):
        raise UserError(f"{key} names every class: nothing would be retained; leave some out")
    return sorted(labels)


def _get(settings: Any, key: str) -> Any:
    for part in key.split("."):
        settings = getattr(settings, part, None)
    return settings
