"""The typed settings of every command. A component's own settings sit beside its code and extend the bases here.

Units: images are in pixel units [0, 1], so ``epsilon`` is too; rates and fractions are in [0, 1]; sizes are in rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

# Settings that change how work is done and not what comes out: no part of a content key.
EXECUTION_ONLY = {"num_actors", "num_gpus", "num_cpus", "num_replicas", "max_replicas", "max_queued", "health_check_s",
                  "timeout_s", "batch_wait_s", "pairs_per_request", "max_batch_size", "store", "concurrency", "retries",
                  "request_timeout_s", "device_map", "reuse_prefix", "checkpoint_steps", "min_workers"}  # fmt: skip

# Settings younger than many a run: at these values they are no part of a content key, so that those runs still count.
YOUNGER = {"trainable": "all", "last_blocks": 1, "lora_rank": 16, "layer_decay": 1.0, "noise": "both",
           "already_classes": [], "already_file": None, "probe_images": 0, "probe_depth": 2 / 3}  # fmt: skip

SINGLE = ("random", "ids")  # scenarios that name images and no concept


def keyed(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of one section that are part of a content key."""
    return {
        name: value
        for name, value in settings.items()
        if name not in EXECUTION_ONLY and not (name in YOUNGER and value == YOUNGER[name])
    }


@dataclass(kw_only=True)
class SourceSettings:
    """What every data source understands."""

    name: str = MISSING
    path: str | None = None  # file, folder, glob or fsspec/Arrow URI
    test_path: str | None = None  # test images, where `path` does not hold them
    test_fraction: float = 0.0  # share of the training rows held out as test images when the source has none
    validation_fraction: float = 0.0  # share of the test rows kept apart for calibration and search, never scored
    coarse: str | None = None  # mapping file, coarse name → fine names: models learn the coarse classes
    max_bad_fraction: float = 0.0  # share of a split's images that may be unreadable: named, counted and left out
    cache_dir: str = "~/.cache/megu_dist"  # where embedded data sets and indexes of shards are kept as Parquet


@dataclass(kw_only=True)
class ModelSettings:
    """Which classifier: ``path`` loads one, otherwise the named architecture is built with random weights."""

    name: str = MISSING
    path: str | None = None  # folder or hub id of a transformers image classifier


@dataclass(kw_only=True)
class OracleSettings:
    """How the oracle is served, what it is asked and what it is shown."""

    name: str = MISSING
    # Serving
    num_replicas: int = 1  # of the served oracle
    max_replicas: int | None = None  # above num_replicas: Serve scales between the two with the load
    num_cpus: float = 1.0  # logical CPUs per replica
    num_gpus: float = 0.0  # per replica; fractions share a GPU
    max_batch_size: int = 32  # pairs rated in one forward pass
    pairs_per_request: int = 8  # pairs that travel together
    batch_wait_s: float = 0.01  # that a forward pass waits for more pairs
    max_queued: int = 256  # requests that wait at a handle; beyond, clients are made to wait
    health_check_s: float = 10.0  # between two looks at a replica
    timeout_s: float = 600.0  # for one request
    store: str | None = None  # folder of stored ratings, shared by jobs; none: <run.dir>/ratings
    # Asking
    images: int = 0  # example images per concept, drawn from the training data (backends that see images)
    image_side: int = 336  # pixels; larger examples are shrunk
    descriptions: str | None = None  # JSON file, class name → text
    shortlist: int = 0  # candidates rated per forget concept; 0: every class
    tail_mass: float = 0.02  # share of a row of T that the classes beyond the shortlist have together
    both_orders: bool = True  # ask (a, b) and (b, a) where the backend's answer depends on it
    phrasings: int = 1  # wordings averaged, where the backend has several
    # Quality
    max_refused: float = 0.2  # share of a row without a usable answer; above, the row is degenerate
    on_degenerate: str = "stop"  # stop | fallback | keep
    fallback: str = "embedding"  # oracle that fills degenerate rows
    # Cost
    price_prompt: float | None = None  # per million prompt tokens
    price_answer: float | None = None  # per million answer tokens
    image_tokens: int = 256  # of one example image, for the estimate before the first rating


@dataclass(kw_only=True)
class MethodSettings:
    """Base of an unlearning method's settings."""

    name: str = MISSING


@dataclass(kw_only=True)
class EngineSettings:
    """Base of a training engine's settings."""

    name: str = MISSING


@dataclass(kw_only=True)
class ForgetSettings:
    """The forget request."""

    scenario: str = "class"  # class | subclass | random | ids
    classes: list[Any] = field(default_factory=list)  # names or indices; of fine classes in the subclass scenario
    fraction: float | None = None  # random: share of the training images
    count: int | None = None  # random: number of training images
    stratified: bool = True  # random: keep the class proportions
    ids_file: str | None = None  # one image id per line
    # What the model has forgotten before: neither retained nor forgotten again, and no perturbing label.
    already_classes: list[Any] = field(default_factory=list)  # names or indices of classes forgotten before
    already_file: str | None = None  # one image id per line; ids that the data no longer holds are passed over


@dataclass(kw_only=True)
class PerturbSettings:
    """Perturbing labels and Fragment-Align noise (design §2)."""

    label_policy: str = "sample"  # sample | argmax
    draws: int = 1  # independent (label, noise_pos) draws per image, used in turn by epoch
    tau: float = 1.0  # softmax temperature of ratings in [0, 10]
    kappa: float = 1.0  # exponent of the original model's own probabilities
    probe_images: int = 0  # retained images that a linear probe of its features learns from; 0: no probe
    probe_depth: float = 2 / 3  # where the probe reads them, as a share of the model's blocks
    epsilon: float = 4 / 255  # bound of the noise, pixel units
    steps: int = 3  # projected sign-gradient steps
    noise: str = "auto"  # auto | both | positive | negative | none; auto: what the method's strengths make use of
    precision: str = "auto"  # of the noise's gradients: auto | fp32 | bf16 (autocast where the device is made for it)
    batch_size: int = 256  # images in one pass
    num_actors: int = 0  # 0: one per GPU, or one per 8 CPUs; on a local Ray none for few images, which the driver does
    num_gpus: float = 0.0  # per actor


@dataclass(kw_only=True)
class TrainSettings:
    """Training and fine-tuning. ``batch_size`` is global: it does not depend on the number of workers."""

    num_workers: int = 1  # training processes
    min_workers: int | None = None  # go on with so few while the cluster holds no more; none: all or nothing
    num_cpus: float = 1.0  # logical CPUs per worker
    use_gpu: bool = False  # one GPU per worker
    threads: int = 0  # torch threads per worker; 0: the node's cores shared among its workers
    epochs: int = 2  # passes over the forget set (unlearn) or the training data (train)
    batch_size: int = 128  # global: of all workers together
    micro_batch_size: int | None = (
        None  # images of a worker in one forward pass; gradients of a step's passes are summed
    )
    gradient_checkpointing: bool = (
        False  # recompute activations in the backward pass: less memory, a third more compute
    )
    optimizer: str = "sgd"  # sgd | adamw
    lr: float = 0.05  # highest learning rate
    momentum: float = 0.9  # of sgd
    weight_decay: float = 5e-4  # of all weights but biases and norms
    warmup_fraction: float = 0.2  # share of the steps with linearly growing learning rate; then cosine to zero
    label_smoothing: float = 0.0  # of retained (or training) images
    clip_grad_norm: float = 0.0  # 0: off
    trainable: str = "all"  # all | head | last_blocks | lora (low-rank updates, and the head)
    last_blocks: int = 1  # blocks, counted from the head, that train.trainable=last_blocks trains with it
    lora_rank: int = 16  # of the updates that train.trainable=lora trains
    layer_decay: float = 1.0  # each block's learning rate, as a share of the next one's
    augment: str = "none"  # none | flip | crop_flip
    precision: str = "auto"  # auto | fp32 | bf16; auto: bf16 autocast where the device is made for it
    batch_norm: str = "sync"  # sync | local | frozen (statistics)
    retain_per_epoch: int | None = None  # retained images drawn anew each epoch; none: all of them
    stop: str = "fixed"  # fixed | calibrated (random and ids scenarios)
    calibrate_every: int = 5  # steps between two looks at the calibrated stop rule
    max_failures: int = 2  # restarts of the worker group from the last checkpoint
    checkpoint_every: int = 1  # epochs
    checkpoint_steps: int | None = None  # also after every so many steps; none: at ends of epochs only
    shuffle_window: int = 16384  # rows among which training rows are shuffled

    @property
    def elastic(self) -> bool:
        """Whether the number of workers may change during the run."""
        return self.min_workers not in (None, self.num_workers)

    @property
    def worker_resources(self) -> dict[str, float]:
        """What Ray sets aside for one worker."""
        return {"CPU": self.num_cpus} | ({"GPU": 1.0} if self.use_gpu else {})


@dataclass(kw_only=True)
class SeedSettings:
    """s_t, s_u, s_e."""

    train: int = 0  # s_t: initial weights, order and augmentation of training
    unlearn: int = 0  # s_u: a random forget set, drawn labels, noise, order of fine-tuning
    evaluate: int = 0  # s_e: samples and attacks of the evaluation


@dataclass(kw_only=True)
class EvaluateSettings:
    """Which models are scored, on how many images."""

    unlearned: str | None = None  # folder of the unlearned model (megu evaluate; megu unlearn scores its own)
    retrained: str | None = None  # folder of the retrained reference
    retrained_second: str | None = None  # one of another seed: the distance that chance alone makes
    split: str = "test"  # test | validation: images never trained on that are scored
    retain_train_limit: int | None = 20000  # seeded sample of retained training images; none: all
    deep: list[str] = field(default_factory=list)  # metrics that take work of their own: zrf, linear_probe, relearn
    relearn_lr: float = 0.001  # learning rate of evaluate.deep=[relearn]
    relearn_epochs: float = 5.0  # at most
    batch_size: int = 512  # images in one pass
    num_actors: int = 0  # 0: one per GPU, or one per 8 CPUs; on a local Ray none for few images, which the driver does
    num_gpus: float = 0.0  # per actor


@dataclass(kw_only=True)
class AnalyzeSettings:
    """What `megu analyze` looks at; models are given as for `megu evaluate`."""

    images_per_class: int = 100  # seeded test images of each class
    neighbours: int = 3  # classes that count as a forgotten class's neighbours
    max_classes: int = 20  # forgotten classes, their neighbours, then others
    max_layers: int = 12  # blocks looked at, evenly spread, beside the penultimate layer
    map: str = "pca"  # pca | umap (needs umap-learn)


@dataclass(kw_only=True)
class BenchmarkSettings:
    """What `megu benchmark` compares. Lists of words are key=value settings, later ones win.

    A group has ``data`` (data and model), ``train`` (original and retrained models), ``unlearn`` (every method),
    ``search`` (the forget request that methods are tuned on), ``targets`` (name → forget request, scored) and
    ``variants`` (name → words with method=…, scored with that method's tuned settings).
    """

    methods: list[str] = field(default_factory=list)  # none: all
    groups: dict[str, Any] = field(default_factory=dict)  # see above
    seeds: list[Any] = field(default_factory=lambda: [0, 1, 2])  # one for s_t, s_u and s_e, or [s_t, s_u, s_e]
    trials: int = 8  # settings that are tried for each method and group, on validation images
    floor: bool = True  # also compare with a second retrained model
    shadows: int = 0  # further pairs of original and retrained models of each target, for U-LiRA
    runners: int = 0  # cells at a time; 0: one per GPU share, or one per core
    num_gpus: float = 0.0  # per cell
    retries: int = 1  # of a cell that fails
    decode_gb: float = 4.0  # data sets up to this size are decoded once


@dataclass(kw_only=True)
class SweepSettings:
    """What `megu sweep` tries. ``space`` maps keys to a list of values, or to low and high with ``log`` or ``int`` true."""

    space: dict[str, Any] = field(default_factory=dict)  # keys, nested or dotted, and what each takes
    search: str = "grid"  # grid | random | optuna
    trials: int = 20  # settings that random and optuna try
    seeds: list[int] = field(default_factory=lambda: [0])  # s_u and s_e; each setting is tried with each of them
    scheduler: str = "none"  # none | asha | pbt; they look at a trial after each epoch
    objectives: list[str] = field(default_factory=list)  # none: score, or with optuna forget_gap, retain_gap, seconds
    search_seed: int = 0  # of what random and optuna draw
    runners: int = 0  # trials at a time; 0: one per GPU share, or one per core; fewer where workers need the room
    num_gpus: float = 0.0  # of a trial that trains in its own process; with several workers see train.use_gpu
    retries: int = 1  # of a trial that fails
    decode_gb: float = 4.0  # data sets up to this size are decoded once
    loggers: list[str] = field(default_factory=list)  # tensorboard | mlflow | wandb
    mlflow_uri: str | None = None  # tracking server or database; none: mlflow.db in the run folder


@dataclass(kw_only=True)
class RunSettings:
    """Where results go and which Ray cluster does the work."""

    dir: str = "runs"  # folder of run folders; on a cluster, one that all nodes share
    name: str | None = None  # none: made from the verb and the request
    address: str | None = None  # none: RAY_ADDRESS, else a Ray of this process's own; auto | ray://… | host:port
    logical_cpus: int = 8  # of a local Ray; more than the cores, so that Data, Train and Serve never starve each other
    object_store_gb: float = 1.0  # of a local Ray
    placement_timeout_s: float = 1800.0  # a stage that waits for room on the cluster for so long gives up
    resume: bool = True  # take finished stages and checkpoints of an earlier run


@dataclass(kw_only=True)
class ReportSettings:
    """What the report shows."""

    compare: list[str] = field(default_factory=list)  # run folders shown beside this one
    images: int = 8  # forget images in the strip


@dataclass(kw_only=True)
class RequestSettings:
    """The ledger of deletion requests (`megu request`)."""

    dir: str = "deletions"  # folder of the journal, the records and the models
    id: str | None = None  # opaque id of a new request; none: the next number


@dataclass(kw_only=True)
class MeguSettings:
    """All settings of one command."""

    data: SourceSettings = MISSING
    model: ModelSettings = MISSING
    oracle: OracleSettings = MISSING
    method: MethodSettings = MISSING
    engine: EngineSettings = MISSING
    forget: ForgetSettings = field(default_factory=ForgetSettings)
    perturb: PerturbSettings = field(default_factory=PerturbSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    seed: SeedSettings = field(default_factory=SeedSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    run: RunSettings = field(default_factory=RunSettings)
    report: ReportSettings = field(default_factory=ReportSettings)
    analyze: AnalyzeSettings = field(default_factory=AnalyzeSettings)
    benchmark: BenchmarkSettings = field(default_factory=BenchmarkSettings)
    sweep: SweepSettings = field(default_factory=SweepSettings)
    request: RequestSettings = field(default_factory=RequestSettings)
    exclude_forget: bool = False  # train: leave the forget set out (the retrained reference)
