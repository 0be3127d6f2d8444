"""The ``megu`` command: verbs to stages. ``megu VERB [key=value …]``."""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import select
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from megu_dist.config.compose import Composed, group_options, load
from megu_dist.config.registry import KINDS, components
from megu_dist.errors import UserError, find_user_error, is_full_disk, nearest

if TYPE_CHECKING:
    from megu_dist.models.checkpoint import Checkpoint
    from megu_dist.pipeline import Pipeline

OPTIONS = """
Options:
  --help            this text
  --config-dir DIR  a folder of your own YAML files, laid out like configs/ (experiment/, data/, …)
"""


@dataclass(frozen=True)
class Verb:
    """``defaults`` come before the user's words; ``run`` gets the settings, the run folder and the ``takes`` words."""

    run: Callable[..., None]
    summary: str
    examples: str
    defaults: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()  # words without "=" that the verb understands
    flags: tuple[str, ...] = ()  # options that the verb understands


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. Exit status: 0 done, 1 a fault (traceback in the log), 2 bad input, 130 interrupted.

    141, and no word, where the reader of the output has gone (``megu list | head -3``), as for any Unix command.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(words)
        sys.stdout.flush()
        sys.exit(code)
    except BrokenPipeError:
        if not _reader_gone():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes once more at its end
        sys.exit(141)
    except UserError as error:
        print(f"megu: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("megu: interrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(130)


def run() -> None:
    """The command itself: :func:`main`, and an end that does not take down thousands of modules one by one.

    That takes two seconds once torch and transformers are imported, and does nothing that the operating system does not.
    """
    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):  # of a reader that has gone
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _reader_gone() -> bool:
    """Whether standard output is a pipe that nobody reads any more."""
    poll = select.poll()
    poll.register(1, select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if words[0] == "--version":
        from megu_dist import __version__

        print(__version__)
        return 0
    name, rest = words[0], words[1:]
    if name in WITHOUT_SETTINGS:
        return WITHOUT_SETTINGS[name](rest)
    show = name == "show-config"
    if show:
        if not rest or rest[0].startswith("-"):
            print("Usage: megu show-config VERB [key=value …]\n\nPrints the settings that VERB would run with.")
            return 0 if rest else 2
        name, rest = rest[0], rest[1:]
    if rest and f"{name} {rest[0]}" in VERBS:
        name, rest = f"{name} {rest[0]}", rest[1:]
    elif rest and "=" not in rest[0] and not rest[0].startswith("-"):
        second = [verb.split()[1] for verb in VERBS if verb.startswith(f"{name} ")]
        if second and not (name in VERBS and VERBS[name].takes):
            raise UserError(f"unknown verb '{name} {rest[0]}': {nearest(rest[0], second)}")
    if name not in VERBS:
        return _no_verb(name, rest)
    verb = VERBS[name]
    if "--help" in rest or "-h" in rest:
        print(
            f"megu {name}: {verb.summary}\n\nExamples:\n{verb.examples}\n{OPTIONS}\nAll keys: megu show-config {name}"
        )
        return 0
    flags = [word for word in rest if word in verb.flags]
    rest, config_dir = _take_option([word for word in rest if word not in flags], "--config-dir")
    taken = [word for word in rest if "=" not in word][: len(verb.takes)]
    composed = load([word for word in rest if word not in taken], verb.defaults, config_dir)
    if show:
        print(composed.yaml, end="")
        return 0
    return _run(name, verb, composed, [*taken, *flags])


def _no_verb(name: str, rest: Sequence[str]) -> int:
    """The first word of verbs of two: names them; anything else is a mistake."""
    family = [verb for verb in VERBS if verb.startswith(f"{name} ")]
    if not family or (rest and rest[0] not in ("--help", "-h")):
        raise UserError(f"unknown verb {name!r}: {nearest(name, [*VERBS, *WITHOUT_SETTINGS, 'show-config'])}")
    print("\n".join(f"megu {verb:18} {VERBS[verb].summary}" for verb in family))
    return 0 if rest else 2


def _take_option(words: list[str], option: str) -> tuple[list[str], str | None]:
    if option not in words:
        unknown = next((w for w in words if w.startswith("--")), None)
        if unknown:
            raise UserError(f"unknown option {unknown}: {nearest(unknown, ['--help', option])}")
        return words, None
    at = words.index(option)
    if at + 1 >= len(words):
        raise UserError(f"{option} needs a folder")
    return words[:at] + words[at + 2 :], words[at + 1]


def _run(name: str, verb: Verb, composed: Composed, taken: Sequence[str]) -> int:
    folder = run_folder(name.split()[0], composed)
    signal.signal(signal.SIGTERM, _interrupt)  # a scheduler's stop ends like Ctrl-C: resumable, no orphan processes
    try:
        verb.run(composed, folder, *taken)
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_gone():
            raise
        mended = find_user_error(error)
        if mended is not None:
            raise mended from None
        log = folder / "log.txt"
        if log.parent.is_dir():
            with contextlib.suppress(OSError), log.open("a") as file:  # the disk may be full
                traceback.print_exc(file=file)
        if is_full_disk(error):
            raise UserError(
                f"a disk is full (the run folder is {folder}): free some space, or set run.dir to a larger disk, and "
                "run the same command again to continue"
            ) from None
        last = str(error).strip().splitlines() or [""]
        print(f"megu: {type(error).__name__}: {last[-1]}", file=sys.stderr)
        if log.is_file():
            print(f"megu: the whole story is in {log}", file=sys.stderr)
        else:
            traceback.print_exc()
        return 1
    return 0


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def run_folder(verb: str, composed: Composed) -> Path:
    """``run.dir/run.name``; without a name, one made from the verb and the request, the same for the same request."""
    s = composed.settings
    if verb == "request":
        return Path(s.request.dir).expanduser().resolve()
    name = s.run.name
    if name is None:
        parts = [verb, s.data.name]
        if verb == "train":
            parts[0] = "retrained" if s.exclude_forget else "original"
        if verb != "train" or s.exclude_forget:
            what = s.forget.classes or [s.forget.scenario, s.forget.fraction or s.forget.count or ""]
            parts.append("-".join(str(item) for item in what))
        if verb == "unlearn":
            parts += [s.method.name, s.oracle.name]
        name = re.sub(r"[^\w.-]+", "-", "-".join(parts)).strip("-")
    return Path(s.run.dir).expanduser().resolve() / name


def _with_pipeline(
    composed: Composed, folder: Path, prepare: Callable[[Pipeline], Callable[[], None]], config: str = "config.yaml"
) -> None:
    """Checks input, then opens log, lock and Ray around the work that ``prepare`` returns; settings go to ``config``."""
    from megu_dist.pipeline import Pipeline
    from megu_dist.progress import Reporter, chatter_to
    from megu_dist.raysession import ray_session

    fresh = not folder.exists()
    try:
        pipeline = Pipeline(composed.settings, folder, Reporter())
        work = prepare(pipeline)
    except UserError:
        if fresh and folder.is_dir():  # a mistyped command leaves nothing behind
            import shutil

            shutil.rmtree(folder)
        raise
    with pipeline.store.locked(), chatter_to(folder / "log.txt") as terminal:
        from megu_dist.store import write_text

        write_text(folder / config, composed.yaml)
        pipeline.reporter = Reporter(terminal)
        with ray_session(composed.settings):
            work()


def _train(composed: Composed, folder: Path) -> None:
    from megu_dist import pipeline as stages

    def prepare(pipeline: Pipeline) -> Callable[[], None]:
        if composed.settings.exclude_forget:
            pipeline.check_request()
        if composed.settings.model.path:
            pipeline.open_model(composed.settings.model.path, "model.path")
        pipeline.check_trainable()
        return lambda: stages.train(pipeline)

    _with_pipeline(composed, folder, prepare)
    print(f"model: {folder / 'model'}")


def _models(pipeline: Pipeline, composed: Composed) -> dict[str, Checkpoint]:
    models = {"original": pipeline.open_model(composed.settings.model.path, "model.path")}
    if composed.settings.evaluate.retrained:
        models["retrained"] = pipeline.open_model(composed.settings.evaluate.retrained, "evaluate.retrained")
        if composed.settings.evaluate.retrained_second:
            second = pipeline.open_model(composed.settings.evaluate.retrained_second, "evaluate.retrained_second")
            models["retrained_second"] = second
    return models


def _unlearn(composed: Composed, folder: Path) -> None:
    _unlearn_stages(composed, folder)
    _print_results(folder, composed.settings.report.compare)
    print(f"model:  {folder / 'model'}\nreport: {folder / 'report.html'}")


def _unlearn_stages(composed: Composed, folder: Path) -> None:
    from megu_dist import pipeline as stages

    def prepare(pipeline: Pipeline) -> Callable[[], None]:
        pipeline.check_request()
        pipeline.check_method()
        if pipeline.needs_perturbed:
            pipeline.check_oracle()
        models = _models(pipeline, composed)
        return lambda: stages.unlearn(pipeline, models)

    _with_pipeline(composed, folder, prepare)


def _evaluate(composed: Composed, folder: Path) -> None:
    from megu_dist import pipeline as stages

    def prepare(pipeline: Pipeline) -> Callable[[], None]:
        pipeline.check_request()
        models = _models(pipeline, composed)
        unlearned = composed.settings.evaluate.unlearned
        if unlearned:
            models["unlearned"] = pipeline.open_model(unlearned, "evaluate.unlearned")
        return lambda: stages.evaluate(pipeline, models)

    _with_pipeline(composed, folder, prepare)
    _print_results(folder, composed.settings.report.compare)


def _analyze(composed: Composed, folder: Path) -> None:
    from rich.console import Console

    from megu_dist.report.analysis import Analysis, terminal
    from megu_dist.report.render import refresh_report

    def prepare(pipeline: Pipeline) -> Callable[[], None]:
        pipeline.check_request()
        pipeline.check_analysis()
        found = _models(pipeline, composed)
        own = folder / "model"  # of a run that unlearned
        unlearned = composed.settings.evaluate.unlearned or (str(own) if (own / "config.json").is_file() else None)
        if unlearned:
            found["unlearned"] = pipeline.open_model(unlearned, "evaluate.unlearned")
        order = ["original", "unlearned", "retrained"]
        models = {name: found[name] for name in order if name in found}

        def work() -> None:
            pipeline.analyze(models)

        return work

    _with_pipeline(composed, folder, prepare, "analysis.yaml")  # config.yaml stays that of the run that unlearned
    analysis = Analysis.load(folder)
    assert analysis is not None
    for table in terminal(analysis):
        Console().print(table)
    print(f"analysis: {folder / 'analysis.json'}\nfigures:  {folder / 'analysis'}")
    if refresh_report(folder):
        print(f"report:   {folder / 'report.html'}")


def _benchmark(composed: Composed, folder: Path) -> None:
    from rich.console import Console

    from megu_dist.benchmark import driver, outcome
    from megu_dist.config.validate import check
    from megu_dist.progress import Reporter, chatter_to
    from megu_dist.raysession import ray_session
    from megu_dist.store import ArtefactStore, write_text

    check(composed.settings)
    cells = driver.check(composed)
    with ArtefactStore(folder).locked(), chatter_to(folder / "log.txt") as terminal:
        write_text(folder / "config.yaml", composed.yaml)
        reporter = Reporter(terminal)
        with ray_session(composed.settings):
            results = driver.run(composed, cells, folder, reporter)
    table = outcome.write(results, folder)
    for shown in outcome.terminal(table):
        Console().print(shown)
    bad = [result for result in results if result["status"] in ("failed", "blocked")]
    for result in bad:
        print(f"{result['status']}: {result['id']}: {result['error']}")
    print(f"cells:   {folder / 'cells.parquet'}\ntables:  {folder / 'tables'}\nfigures: {folder / 'figures'}")
    if bad:
        raise UserError(
            f"{len(bad)} of {len(results)} cells have no result; run the same command again to try them once more"
        )


def _sweep(composed: Composed, folder: Path, resume: str = "") -> None:
    from rich.console import Console

    from megu_dist.progress import Reporter, chatter_to
    from megu_dist.raysession import ray_session
    from megu_dist.store import ArtefactStore, write_text
    from megu_dist.tune import page, study
    from megu_dist.tune.outcome import outcome

    if resume and not (folder / study.STATE).is_file():
        raise UserError(f"--resume: there is no sweep in {folder}; leave --resume out to begin one")
    with ArtefactStore(folder).locked():
        space = study.check(composed)
        with chatter_to(folder / "log.txt") as terminal:
            write_text(folder / "config.yaml", composed.yaml)
            with ray_session(composed.settings):
                rows = study.run(composed, space, folder, Reporter(terminal))
    found = outcome(rows, space)
    page.write(found, space, composed, folder)
    Console(width=None if sys.stdout.isatty() else 160).print(page.terminal(found))
    failed = found.rows[found.rows["status"] == "failed"].drop_duplicates("trial")
    for words, error in failed[["words", "error"]].itertuples(index=False):
        print(f"failed: {words}: {error}")
    print(f"trials:      {folder / 'sweep.parquet'}\nreport:      {folder / 'report.html'}")
    if found.best is not None:
        print(f"recommended: {folder / 'experiment' / 'recommended.yaml'}")
    if len(failed):
        raise UserError(f"{len(failed)} settings have no result; run the same command again to try them once more")


def _oracle(composed: Composed, folder: Path) -> None:
    from megu_dist import pipeline as stages

    def prepare(pipeline: Pipeline) -> Callable[[], None]:
        pipeline.check_request()
        pipeline.check_oracle()
        if composed.settings.model.path:
            pipeline.open_model(composed.settings.model.path, "model.path")
        return lambda: stages.oracle(pipeline)

    _with_pipeline(composed, folder, prepare)
    _oracle_show(composed, folder)
    print(f"transition matrix: {folder / 'transition.json'}")


def _oracle_show(composed: Composed, folder: Path, other: str | None = None) -> None:
    from rich.console import Console

    from megu_dist.oracle import show
    from megu_dist.report.render import write_transition_figure

    where = Path(other).expanduser().resolve() if other else folder
    data = show.read(where)
    console = Console()
    console.print(show.neighbours(data))
    told = {
        key: data.get(key) for key in ("pairs", "calls", "reused", "prompt_tokens", "answer_tokens", "seconds", "cost")
    }
    console.print(", ".join(f"{key.replace('_', ' ')} {value}" for key, value in told.items() if value is not None))
    print(f"heatmap: {write_transition_figure(where)}")


def _oracle_compare(composed: Composed, folder: Path, first: str = "", second: str = "") -> None:
    from rich.console import Console

    from megu_dist.oracle import compare, show

    if not first or not second:
        raise UserError("give two runs: megu oracle compare RUN_FOLDER RUN_FOLDER (or transition.json files)")
    a, b = compare.load(first), compare.load(second)
    compared = [(f"{a.name} / {b.name}", compare.compare(a, b))]
    skipped = []
    for one in (a, b):
        try:
            compared.append(
                (f"{one.name} / WordNet", compare.compare(one, compare.wordnet_opinion(one.columns, list(one.rows))))
            )
        except UserError as error:
            skipped.append(f"WordNet and {one.name}: skipped: {error}")
    Console().print(show.agreements(compared))
    for line in dict.fromkeys(skipped):
        print(line)


def _oracle_serve(composed: Composed, folder: Path) -> None:
    from megu_dist.oracle.keep import keep

    keep(composed.settings)


def _oracle_stop(composed: Composed, folder: Path) -> None:
    from megu_dist.oracle.keep import stop

    stopped = stop(composed.settings)
    print("stopped: " + ", ".join(stopped) if stopped else "no oracle of megu is running there")


def _plan(composed: Composed, folder: Path) -> None:
    from megu_dist.forecast import plan
    from megu_dist.pipeline import Pipeline
    from megu_dist.progress import Reporter

    fresh = not folder.exists()
    try:
        pipeline = Pipeline(composed.settings, folder, Reporter())
        pipeline.check_request()
        lines = plan(pipeline)
    finally:
        if fresh and folder.is_dir():  # a plan leaves nothing behind
            import shutil

            shutil.rmtree(folder)
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        print(f"{name:{width}}  {value}")


def _report(composed: Composed, folder: Path) -> None:
    from megu_dist.report.render import rewrite_report

    if not folder.is_dir():
        siblings = [p.name for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
        raise UserError(f"no run folder {folder}; run.name: {nearest(folder.name, siblings)}")
    settings = composed.settings.report
    rewrite_report(folder, [Path(path).expanduser().resolve() for path in settings.compare], settings.images)
    _print_results(folder, settings.compare)
    print(f"report: {folder / 'report.html'}")


def _print_results(folder: Path, compare: Sequence[str]) -> None:
    from rich.console import Console

    from megu_dist.report.load import RunMetrics
    from megu_dist.report.terminal import summary_table

    others = [RunMetrics.load(Path(path).expanduser()) for path in compare]
    Console().print(summary_table(RunMetrics.load(folder), others))


def _list(words: list[str]) -> int:
    kinds = words or [*KINDS, "experiment"]
    for kind in kinds:
        if kind == "experiment":
            print("experiment:\n  " + "\n  ".join(group_options("experiment")))
        elif kind in KINDS:
            print(f"{kind}:")
            for component in components(kind).values():
                print(f"  {component.name:14} {component.summary}")
        else:
            raise UserError(f"cannot list {kind!r}: {nearest(kind, [*KINDS, 'experiment'])}")
    return 0


def _request(verb: str) -> Callable[..., None]:
    def run(composed: Composed, folder: Path, *taken: str) -> None:
        from megu_dist.request import commands

        if verb == "run":
            return commands.run(composed, folder, _unlearn_stages)
        actions = {"add": commands.add, "list": commands.listed, "show": commands.shown, "verify": commands.verify,
                   "withdraw": commands.withdraw}  # fmt: skip
        return actions[verb](composed, folder, *taken)

    return run


def _submit(words: list[str]) -> int:
    from megu_dist.jobs.commands import submit

    return submit(words, VERBS)


def _jobs(words: list[str]) -> int:
    from megu_dist.jobs.commands import jobs

    return jobs(words)


def _doctor(words: list[str]) -> int:
    from megu_dist.doctor.commands import doctor

    return doctor(words)


def _usage() -> str:
    verbs = "\n".join(f"  {name:14} {verb.summary}" for name, verb in VERBS.items() if name != "oracle fill")
    return (
        "megu: make a trained image classifier forget a class or a list of images, on Ray\n\n"
        f"Usage: megu VERB [key=value …]\n\nVerbs:\n{verbs}\n"
        "  submit         any of these as a job on a Ray cluster\n"
        "  jobs           list, logs and stop of such jobs\n"
        "  doctor         what is wrong with this machine or a cluster, and how to mend it\n"
        "  list           what there is to choose from: data, models, oracles, methods, metrics, engines, experiments\n"
        "  show-config    the settings that a verb would run with\n\n"
        "`megu VERB --help` shows examples."
    )


VERBS: dict[str, Verb] = {
    "train": Verb(
        _train,
        "train a classifier: the original, or the retrained reference with exclude_forget=true",
        "  megu train data=fashion_mnist model.width=16 model.num_channels=1 model.image_size=28\n"
        "  megu train data=parquet data.path=s3://bucket/cifar10 train.epochs=30 run.name=original\n"
        "  megu train experiment=fashion_mnist_train exclude_forget=true 'forget.classes=[Shirt]'",
        ("train=scratch",),
    ),
    "benchmark": Verb(
        _benchmark,
        "tune and compare methods on many forget requests and seeds, against retrained models",
        "  megu benchmark experiment=benchmark_digits\n"
        "  megu benchmark experiment=benchmark_small data.path=DIR/cifar10 run.name=small\n"
        "  megu benchmark experiment=benchmark_small 'benchmark.methods=[megu,scrub]' 'benchmark.seeds=[0]'",
    ),
    "sweep": Verb(
        _sweep,
        "try many settings of an unlearning on validation images: sensitivity report, best setting",
        "  megu sweep experiment=sensitivity_noise model.path=runs/original/model\n"
        "  megu sweep … 'sweep.space.method.alpha=[0,0.5,1]' 'sweep.space.perturb.tau=[1,2,4]' 'sweep.seeds=[0,1,2]'\n"
        "  megu sweep … sweep.search=optuna sweep.trials=40 'sweep.space.train.lr={low: 0.001, high: 0.05, log: true}'\n"
        "  megu sweep … sweep.search=random sweep.scheduler=asha train.epochs=4\n"
        "  megu sweep … --resume   (goes on where it was)",
        flags=("--resume",),
    ),
    "oracle": Verb(
        _oracle,
        "fill the transition matrix of a forget request from the served oracle",
        "  megu oracle data=fashion_mnist 'forget.classes=[Shirt]'\n"
        "  megu oracle fill oracle=mllm oracle.path=/models/Qwen2.5-VL-7B oracle.num_gpus=1 'forget.classes=[Shirt]'\n"
        "  megu oracle fill oracle=openai oracle.base_url=http://host:8000/v1 oracle.model=NAME 'forget.classes=[Shirt]'",
    ),
    "oracle show": Verb(
        _oracle_show,
        "nearest classes per forget concept, quality of the rows, heatmap, of a filled run",
        "  megu oracle show runs/megu\n  megu oracle show run.name=megu",
        takes=("RUN",),
    ),
    "oracle compare": Verb(
        _oracle_compare,
        "rank correlation and top-k overlap of two filled runs, and of each with WordNet",
        "  megu oracle compare runs/oracle-a runs/oracle-b",
        takes=("RUN", "RUN"),
    ),
    "oracle serve": Verb(
        _oracle_serve,
        "keep an oracle running for several jobs (until Ctrl-C, or on a cluster until oracle stop)",
        "  megu oracle serve oracle=mllm oracle.path=/models/Qwen2.5-VL-7B oracle.num_gpus=1 run.address=auto",
    ),
    "oracle stop": Verb(
        _oracle_stop,
        "stop the oracles that `megu oracle serve` left running on a cluster",
        "  megu oracle stop run.address=auto",
    ),
    "plan": Verb(
        _plan,
        "what an unlearning would take, without starting anything: rows, oracle calls, tokens, price",
        "  megu plan data=fashion_mnist 'forget.classes=[Shirt]'\n"
        "  megu plan oracle=openai oracle.model=NAME oracle.price_prompt=0.15 oracle.price_answer=0.6 'forget.classes=[Shirt]'",
    ),
    "unlearn": Verb(
        _unlearn,
        "make a trained classifier forget: split, oracle, perturb, finetune, evaluate, report",
        "  megu unlearn data=fashion_mnist model.path=runs/original/model 'forget.classes=[Shirt]'\n"
        "  megu unlearn data=parquet data.path=DIR model.path=DIR forget.scenario=random forget.fraction=0.01\n"
        "  megu unlearn data=image_folder data.path=DIR model.path=DIR forget.scenario=ids forget.ids_file=ids.txt\n"
        "  megu unlearn … train.num_workers=2 engine.zero_stage=2\n"
        "  megu unlearn … oracle=uniform perturb.kappa=0 method.alpha=0   (random labels)",
    ),
    "evaluate": Verb(
        _evaluate,
        "score models on retained and forgotten images",
        "  megu evaluate data=fashion_mnist model.path=runs/original/model evaluate.unlearned=runs/x/model \\\n"
        "      evaluate.retrained=runs/retrained/model 'forget.classes=[Shirt]'",
    ),
    "analyze": Verb(
        _analyze,
        "how entangled a forgotten class is with its neighbours: shared features, CKA, maps",
        "  megu analyze data=fashion_mnist model.path=runs/original/model evaluate.unlearned=runs/x/model \\\n"
        "      evaluate.retrained=runs/retrained/model 'forget.classes=[Shirt]'\n"
        "  megu analyze … run.name=x   (into the folder of a run: its report gets a section)",
    ),
    "request add": Verb(
        _request("add"),
        "record a deletion request: classes, or training images by id",
        "  megu request add request.dir=deletions data=fashion_mnist 'forget.classes=[Shirt]'\n"
        "  megu request add data=parquet data.path=DIR forget.ids_file=ids.txt request.id=ticket-4711",
    ),
    "request list": Verb(
        _request("list"), "the requests of a ledger and how far they are", "  megu request list request.dir=deletions"
    ),
    "request run": Verb(
        _request("run"),
        "carry out all pending requests in one unlearning of the latest model",
        "  megu request run request.dir=deletions data=fashion_mnist model.path=runs/original/model\n"
        "  megu request run … evaluate.retrained=runs/retrained/model   (takes the words of megu unlearn, too)\n\n"
        "model.path is the model before the first deletion; later runs start from the model of the run before.\n"
        "A run that was stopped goes on with the same requests. A second one meanwhile waits for the first.",
        ("evaluate.deep=[linear_probe,relearn]",),
    ),
    "request show": Verb(
        _request("show"),
        "what was asked, done and measured for a request, and what that does not prove; a page of it",
        "  megu request show r0001 request.dir=deletions",
        takes=("ID",),
    ),
    "request verify": Verb(
        _request("verify"),
        "check journal, records, ids and models of a ledger against their hashes",
        "  megu request verify request.dir=deletions\n"
        "  megu request verify HASH   (of a line, noted down earlier: it must still be there)",
        takes=("HASH",),
    ),
    "request withdraw": Verb(
        _request("withdraw"),
        "take back a request that was not carried out",
        "  megu request withdraw r0002 request.dir=deletions",
        takes=("ID",),
    ),
    "report": Verb(
        _report,
        "write report.html of a finished run again, perhaps beside other runs",
        "  megu report run.name=megu 'report.compare=[runs/random_label]'",
    ),
}

VERBS["oracle fill"] = VERBS["oracle"]
WITHOUT_SETTINGS: dict[str, Callable[[list[str]], int]] = {
    "list": _list,
    "submit": _submit,
    "jobs": _jobs,
    "doctor": _doctor,
}

if __name__ == "__main__":
    run()
