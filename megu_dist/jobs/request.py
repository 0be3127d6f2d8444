"""From the words of ``megu submit`` to what is sent: the same words and files make the same request and the same id."""

from __future__ import annotations

import getpass
import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megu_dist import __version__
from megu_dist.config.compose import Composed, load
from megu_dist.config.schema import MeguSettings
from megu_dist.config.validate import check, check_forget, check_method
from megu_dist.data.stream import LOCAL_CORES
from megu_dist.errors import UserError, nearest
from megu_dist.jobs import options as opts
from megu_dist.jobs import package as pack
from megu_dist.jobs.inside import SECRETS
from megu_dist.jobs.options import SubmitOptions
from megu_dist.jobs.paths import refuse_passwords, settle

if TYPE_CHECKING:
    from megu_dist.cli import Verb

CONFIG_DIR = "config_dir"  # folder of the package with the user's own YAML files
# What looks at finished runs or at a ledger: nothing for a cluster to do.
LOCAL_ONLY = ("oracle show", "oracle compare", "report", "request add", "request list", "request show",
              "request verify", "request withdraw")  # fmt: skip
FORGETTING = ("unlearn", "evaluate", "analyze", "sweep", "oracle", "oracle fill", "plan")
WITH_MODEL = ("unlearn", "evaluate", "analyze", "sweep")

SEVERAL = {"benchmark": "cells", "sweep": "trials"}  # verbs that do many runs, each on a share of what is asked for


@dataclass(frozen=True)
class Request:
    """``body`` is what Ray's job server gets, but for the job's number; ``package`` goes there before it."""

    id: str
    body: dict[str, Any]
    package: pack.Package | None
    asks: str  # the resources, in words

    def shown(self, address: str | None) -> str:
        """JSON of everything that would be sent, and of the names of the packaged files."""
        told: dict[str, Any] = {"address": address, "request": {"submission_id": self.id, **self.body}}
        if self.package:
            size = len(self.package.content)
            told["package"] = {"uri": self.package.uri, "bytes": size, "files": sorted(self.package.files)}
        return json.dumps(told, indent=2, ensure_ascii=False)


def build(words: Sequence[str], options: SubmitOptions, verbs: Mapping[str, Verb]) -> Request:
    """Checks everything that can be checked here; nothing is sent."""
    opts.check(options)
    name, words = _verb(words, verbs)
    refuse_passwords(words)
    given = _keys(words)
    if "run.address" in given:
        raise UserError("run.address: a job runs on the cluster it was submitted to; leave it out (--address names it)")
    words = [*words, *_gpu_words(name, options, given), "run.address=auto"]
    composed = load(words, verbs[name].defaults, options.config_dir)
    placed, inputs = settle(composed.settings, options.shared, name)
    replaced = _keys(placed)
    kept = [word for word in words if word.partition("=")[0] not in replaced]
    words = [*kept, *placed, *_actor_words(name, composed.settings)]
    composed = load(words, verbs[name].defaults, options.config_dir)
    _check(name, composed.settings)
    files = _files(options, inputs)
    package = pack.make(files, options.exclude) if files else None
    return _request(name, words, composed, options, package)


def _verb(words: Sequence[str], verbs: Mapping[str, Verb]) -> tuple[str, list[str]]:
    known = [name for name in verbs if name not in LOCAL_ONLY]
    if not words or "=" in words[0]:
        raise UserError(f"name the verb to submit, as in megu submit unlearn …; valid: {', '.join(known)}")
    count = 2 if len(words) > 1 and " ".join(words[:2]) in verbs else 1
    name = " ".join(words[:count])
    if name not in known:
        raise UserError(f"cannot submit {name!r}: {nearest(name, known)}")
    return name, list(words[count:])


def _keys(words: Sequence[str]) -> dict[str, str]:
    """Value of each ``key=value``; the last one counts."""
    return {key.lstrip("+~"): value for key, _, value in (word.partition("=") for word in words)}


def _gpu_words(name: str, options: SubmitOptions, given: Mapping[str, str]) -> list[str]:
    """``--num-gpus N``: one training worker and one model actor on each, in the stages' turn; N at a time."""
    count = options.num_gpus
    if count is None:
        return []
    if name in SEVERAL:
        wanted = {f"{name}.num_gpus": "1", f"{name}.runners": str(count)}
    else:
        wanted = {"train.use_gpu": "true", "train.num_workers": str(count)}
        for stage in ("perturb", "evaluate"):
            wanted |= {f"{stage}.num_gpus": "1", f"{stage}.num_actors": str(count)}
    for key in ("train.num_workers", "train.use_gpu"):
        if key in given and key in wanted and given[key].lower() != wanted[key]:
            raise UserError(f"--num-gpus={count} means {key}={wanted[key]}, but {key}={given[key]} is given: drop one")
    return [f"{key}={value}" for key, value in wanted.items() if key not in given]


def _actor_words(name: str, settings: MeguSettings) -> list[str]:
    """Counts that are otherwise taken from the whole cluster, which a job shares with others."""
    if name in SEVERAL and getattr(settings, name).runners == 0:
        what = SEVERAL[name]
        raise UserError(
            f"{name}.runners=0 takes the whole cluster: say how many {what} may run at a time, or --num-gpus"
        )
    workers = settings.train.num_workers
    return [f"{s}.num_actors={workers}" for s in ("perturb", "evaluate") if getattr(settings, s).num_actors == 0]


def _check(name: str, settings: MeguSettings) -> None:
    """The checks of the verb that need no data; the data are on the cluster, which checks the rest first thing."""
    check(settings)
    if name in FORGETTING or (name == "train" and settings.exclude_forget):
        forget = settings.forget
        if forget.ids_file:
            forget = replace(forget, ids_file=__file__)  # whether it exists is seen there, or was when it was packaged
        check_forget(replace(settings, forget=forget))
    if name == "unlearn":
        check_method(settings)
    if name in WITH_MODEL and not settings.model.path:
        raise UserError("model.path is not set: give the folder or hub id of a trained image classifier")


def _files(options: SubmitOptions, inputs: Mapping[str, Path]) -> dict[str, Path]:
    """Names in the package and the files here."""
    if options.exclude and not options.working_dir:
        raise UserError(
            "--exclude says what of --working-dir stays here, which is not given: give it, or leave --exclude out"
        )
    code = options.code or ("package" if pack.in_checkout() else "installed")
    files = pack.folder(options.working_dir, "--working-dir", options.exclude) if options.working_dir else {}
    if code == "package":
        files |= pack.own_code()
    if options.config_dir:
        files |= {f"{CONFIG_DIR}/{n}": p for n, p in pack.folder(options.config_dir, "--config-dir", ()).items()}
    return files | dict(inputs)


def _request(
    name: str, words: Sequence[str], composed: Composed, options: SubmitOptions, package: pack.Package | None
) -> Request:
    packaged = package is not None and "megu_dist/__init__.py" in package.files
    command = ["python", "-m", "megu_dist.jobs.inside"]
    command += [] if packaged else ["--version", __version__]
    command += ["--", *name.split(), *words]
    command += ["--config-dir", CONFIG_DIR] if options.config_dir else []
    runtime_env: dict[str, Any] = {"working_dir": package.uri} if package else {}
    runtime_env["env_vars"] = opts.environment(options)
    if options.num_cpus:
        runtime_env["env_vars"][LOCAL_CORES] = str(options.num_cpus)
    if secrets := opts.secrets(options):
        runtime_env["env_vars"][SECRETS] = ",".join(f"{n}={f}" if f else n for n, f in secrets.items())
        if any(secrets.values()):
            runtime_env["worker_process_setup_hook"] = "megu_dist.jobs.inside.load_secrets"
    if options.pip:
        runtime_env["pip"] = list(options.pip)
    body: dict[str, Any] = {"entrypoint": shlex.join(command), "runtime_env": runtime_env}
    entry = {
        "entrypoint_num_cpus": options.entrypoint_num_cpus,
        "entrypoint_num_gpus": options.entrypoint_num_gpus,
        "entrypoint_memory": options.entrypoint_memory,
        "entrypoint_resources": opts.resources(options) or None,
    }
    body |= {key: value for key, value in entry.items() if value is not None}
    content = [
        name,
        composed.yaml,
        {**body, "entrypoint": None if packaged else __version__},
    ]  # whatever the words' order
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    asks = _asks(name, composed.settings, options)
    code = f"package {package.digest[:12]}" if package and packaged else f"megu-dist {__version__} of the cluster"
    body["metadata"] = {
        "megu": __version__,
        "name": f"megu {name}",
        "verb": name,
        "run": _run_folder(name, composed),
        "code": code,
        "asks": asks,
        "user": getpass.getuser(),
    }
    return Request(f"megu-{name.replace(' ', '-')}-{digest}", body, package, asks)


def _run_folder(name: str, composed: Composed) -> str:
    from megu_dist.cli import run_folder

    return str(run_folder(name.split()[0], composed))


def _asks(name: str, settings: MeguSettings, options: SubmitOptions) -> str:
    """What the job takes of the cluster, stage by stage."""
    where = options.entrypoint_num_cpus or options.entrypoint_num_gpus or options.entrypoint_resources
    parts = ["driver on any node with what it asks for" if where else "driver on the head node"]
    if name in SEVERAL:
        own = getattr(settings, name)
        return ", ".join([*parts, f"{own.runners} {SEVERAL[name]} of 1 CPU and {own.num_gpus:g} GPU"])
    if name in ("train", "unlearn"):
        train = settings.train
        parts.append(f"training {train.num_workers} × ({train.num_cpus:g} CPU, {int(train.use_gpu)} GPU)")
    for stage in ("perturb", "evaluate"):
        one = getattr(settings, stage)
        if name == "unlearn" or name == stage:
            parts.append(f"{stage} {one.num_actors} × {one.num_gpus:g} GPU")
    if name in ("unlearn", "oracle", "oracle fill", "oracle serve"):
        oracle = settings.oracle
        parts.append(f"oracle {oracle.num_replicas} × ({oracle.num_cpus:g} CPU, {oracle.num_gpus:g} GPU)")
    reading = f"at most {options.num_cpus} CPU" if options.num_cpus else "the CPUs that are free"
    return ", ".join([*parts, f"reading {reading}"])
