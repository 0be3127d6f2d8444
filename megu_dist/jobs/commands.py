"""``megu submit`` and ``megu jobs list|logs|stop``: words in, exit status out."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from megu_dist.errors import UserError, nearest
from megu_dist.jobs import options as opts
from megu_dist.jobs.client import LIVE, Cluster, Lost, say
from megu_dist.jobs.options import SubmitOptions
from megu_dist.jobs.request import build

if TYPE_CHECKING:
    from megu_dist.cli import Verb

T = TypeVar("T")

SUBMIT_HELP = """megu submit: run a verb as a job on a Ray cluster; follow its log; exit with its status

Usage: megu submit VERB [key=value …] --address URL [options]

Examples:
  megu submit unlearn --address http://127.0.0.1:8265 --shared /shared data=parquet data.path=cifar10 \\
      model.path=runs/original/model 'forget.classes=[cat]' --num-gpus 4
  megu submit unlearn … --secret OPENAI_API_KEY=/run/secrets/openai --pip 'openai>=2'
  megu submit train … --dry-run

Where:
  --address URL        the job server, as in http://127.0.0.1:8265; else RAY_API_SERVER_ADDRESS or RAY_ADDRESS
  --ca FILE            certificates that an https address is checked with
  --shared DIR         a folder that all nodes have mounted, as they see it: relative paths in settings are below it
  --patience SECONDS   how long a lost cluster is looked for (600); the job goes on meanwhile
What it may use:
  --num-gpus N         N training workers with one GPU each, and as many model actors in the other stages
  --num-cpus N         CPUs that reading and decoding may take at a time; else those that are free
  --entrypoint-num-cpus, --entrypoint-num-gpus, --entrypoint-memory, --entrypoint-resources NAME=AMOUNT
                       what the driver itself reserves; without any it runs on the head node
What travels:
  --code package|installed   this megu's code (default in a checkout), or the version that the cluster has (it is checked)
  --working-dir DIR    a folder that becomes the job's current one; --exclude PATTERN leaves files of it out
  --config-dir DIR     your own YAML files
  --pip REQUIREMENT    a package that Ray installs for the job
  --env NAME=VALUE     an environment variable of the job and its workers (shown by the dashboard)
  --secret NAME        a variable that the cluster's nodes have; its value is neither sent nor stored
  --secret NAME=FILE   the same, from a file that the nodes can read
How:
  --dry-run            print what would be sent, and send nothing
  --no-wait            do not follow the log
  --again              start a finished request once more

The same request has the same job id: a running or finished job is followed, not started twice; a failed or stopped one
is started again under the next number and continues where its run folder was. Ctrl-C leaves the job running."""

JOBS_HELP = """megu jobs: what runs on a cluster

Usage:
  megu jobs list --address URL [--all]          megu's jobs; --all: other jobs, too
  megu jobs logs ID --address URL [--follow]    what a job has written; --follow: until it ends, with its exit status
  megu jobs stop ID --address URL               stop a job; submitting the same again continues it"""


def submit(words: Sequence[str], verbs: Mapping[str, Verb]) -> int:
    """``megu submit``; the job's exit status."""
    if not words or "--help" in words or "-h" in words:
        print(SUBMIT_HELP)
        return 0 if words else 2
    options, rest = opts.read(words, opts.SUBMIT)
    request = build(rest, options, verbs)
    if options.dry_run:
        named = options.address or any(os.environ.get(name) for name in opts.ADDRESS_VARIABLES)
        print(request.shown(opts.address(options) if named else None))
        return 0
    cluster = _connect(options)
    job, started = _lost_is_told(lambda: cluster.start(request, options.again, options.patience))
    say(f"started job {job} ({request.asks})" if started else f"job {job} is this request already: following it")
    if options.no_wait:
        print(job)
        return 0
    return _follow(cluster, job, options)


def jobs(words: Sequence[str]) -> int:
    """``megu jobs list|logs|stop``."""
    if not words or "--help" in words or "-h" in words:
        print(JOBS_HELP)
        return 0 if words else 2
    options, rest = opts.read(words, opts.JOBS)
    actions: dict[str, Callable[..., int]] = {"list": _list, "logs": _logs, "stop": _stop}
    if not rest or rest[0] not in actions:
        raise UserError(f"megu jobs {' '.join(rest)}: {nearest(rest[0] if rest else '', actions)}")
    needed = 0 if rest[0] == "list" else 1
    if len(rest) != 1 + needed:
        raise UserError(
            f"megu jobs {rest[0]} takes {'the id of one job' if needed else 'no further words'}; see megu jobs --help"
        )
    cluster = _connect(options)
    return _lost_is_told(lambda: actions[rest[0]](cluster, options, *rest[1:]))


def _connect(options: SubmitOptions) -> Cluster:
    address = opts.address(options)
    url = urlsplit(address)
    if url.scheme == "http" and url.hostname not in ("localhost", "127.0.0.1", "::1"):
        say(f"{address} is not encrypted: the token and the job are readable on the way; a tunnel or https is better")
    return _lost_is_told(lambda: Cluster(address, options.ca))


def _lost_is_told(work: Callable[[], T]) -> T:
    try:
        return work()
    except Lost as error:
        raise UserError(
            f"no answer from the job server: {error}; check --address, and that its tunnel or port-forward runs"
        ) from None


def _follow(cluster: Cluster, job: str, options: SubmitOptions) -> int:
    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    try:
        return cluster.follow(job, options.patience, write)
    except KeyboardInterrupt:
        say(f"job {job} goes on: `megu jobs logs {job} --follow` to look on, `megu jobs stop {job}` to end it")
        return 130


def _list(cluster: Cluster, options: SubmitOptions) -> int:
    from rich.console import Console
    from rich.table import Table

    table = Table("job", "state", "started", "minutes", "user", "run", box=None)
    for job in cluster.jobs():
        told = job.metadata or {}
        if "megu" not in told and not options.all:
            continue
        state, began = str(job.status.value), (job.start_time or 0) / 1000
        ended = (job.end_time or 0) / 1000 or time.time()
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(began))
        minutes = f"{(ended - began) / 60:.1f}"
        table.add_row(job.submission_id, state, when, minutes, told.get("user", ""), told.get("run", ""))
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table if table.row_count else "no jobs")
    return 0


def _logs(cluster: Cluster, options: SubmitOptions, job: str) -> int:
    cluster.known(job)
    if options.follow:
        return _follow(cluster, job, options)
    sys.stdout.write(cluster.logs(job))
    return 0


def _stop(cluster: Cluster, options: SubmitOptions, job: str) -> int:
    before = str(cluster.known(job).status.value)
    if before not in LIVE:
        print(f"{job} has {before.lower()} already")
        return 0
    state = cluster.stop(job)
    print(f"{job} {state.lower()}")
    return 0 if state not in LIVE else 1
