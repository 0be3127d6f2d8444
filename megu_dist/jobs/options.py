"""The options of ``megu submit`` and ``megu jobs``, read and checked before anything is packaged or sent."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import urlsplit

from megu_dist.errors import UserError, nearest
from megu_dist.raysession import ENVIRONMENT

ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")  # Ray's own order; both would override an argument
SECRET_WORDS = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL)", re.IGNORECASE)
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
CODE = ("package", "installed")


@dataclass(kw_only=True)
class SubmitOptions:
    """What ``--name`` options ask for; a list is an option that may be given several times."""

    address: str | None = None
    ca: str | None = None  # file of certificates that an https address is checked with
    num_gpus: int | None = None  # GPUs that the work takes: one training worker and one model actor on each
    num_cpus: int | None = None  # CPUs that reading and decoding may take at a time, beside training
    entrypoint_num_cpus: float | None = None
    entrypoint_num_gpus: float | None = None
    entrypoint_memory: int | None = None  # bytes
    entrypoint_resources: list[str] = field(default_factory=list)  # NAME=AMOUNT
    code: str | None = None  # package | installed; none: package from a checkout, else installed
    working_dir: str | None = None
    exclude: list[str] = field(default_factory=list)
    shared: str | None = None
    pip: list[str] = field(default_factory=list)
    env: list[str] = field(default_factory=list)  # NAME=VALUE
    secret: list[str] = field(default_factory=list)  # NAME or NAME=FILE
    config_dir: str | None = None
    patience: float = 600.0  # seconds that a lost cluster is looked for
    dry_run: bool = False
    no_wait: bool = False
    again: bool = False
    follow: bool = False
    all: bool = False


SUBMIT = ("address", "ca", "num_gpus", "num_cpus", "entrypoint_num_cpus", "entrypoint_num_gpus", "entrypoint_memory",
          "entrypoint_resources", "code", "working_dir", "exclude", "shared", "pip", "env", "secret", "config_dir",
          "patience", "dry_run", "no_wait", "again")  # fmt: skip
JOBS = ("address", "ca", "patience", "follow", "all")


def read(words: Sequence[str], allowed: Sequence[str]) -> tuple[SubmitOptions, list[str]]:
    """The options among ``words`` (``--name value``, ``--name=value``), and the words that are none."""
    found: dict[str, Any] = {}
    rest: list[str] = []
    known = {item.name: item for item in fields(SubmitOptions) if item.name in allowed}
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if not word.startswith("--"):
            rest.append(word)
            continue
        flag, has_value, value = word.partition("=")
        name = flag[2:].replace("-", "_")
        if name not in known:
            raise UserError(f"unknown option {flag}: {nearest(flag, ['--' + _dashed(key) for key in allowed])}")
        kind = str(known[name].type)
        if kind == "bool":
            found[name] = True
            continue
        if not has_value:
            if not queue:
                raise UserError(f"{flag} needs a value; --help shows examples")
            value = queue.pop(0)
        if kind.startswith("list"):
            found.setdefault(name, []).append(value)
        else:
            found[name] = _number(flag, value, kind) if "str" not in kind else value
    return SubmitOptions(**found), rest


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _number(flag: str, value: str, kind: str) -> float:
    convert: Callable[[str], float] = int if "int" in kind else float
    try:
        number = convert(value)
    except ValueError:
        raise UserError(f"{flag}={value}: must be a {'whole ' if convert is int else ''}number") from None
    if not number >= (0 if flag.startswith("--entrypoint") else 1):
        raise UserError(f"{flag}={value}: must be at least {0 if flag.startswith('--entrypoint') else 1}")
    return number


def check(options: SubmitOptions) -> None:
    """What single options may not hold; paths are checked where they are used."""
    if options.code is not None and options.code not in CODE:
        raise UserError(f"--code={options.code}: {nearest(options.code, CODE)}")
    environment(options)
    secrets(options)
    resources(options)


def environment(options: SubmitOptions) -> dict[str, str]:
    """``--env`` as a mapping. Whatever looks like a secret is refused: Ray stores and shows these values."""
    found = {}
    for word in options.env:
        name, given, value = word.partition("=")
        if not given or not VARIABLE.fullmatch(name):
            raise UserError(f"--env {name}: give NAME=VALUE, as in --env MEGU_DATA_DIR=/shared/data")
        if SECRET_WORDS.search(name):
            raise UserError(
                f"--env {name}: looks like a secret, and Ray stores and shows the values of --env; use --secret {name} "
                f"(a variable that the nodes have) or --secret {name}=FILE (a file that they can read)"
            )
        if name.startswith(("RAY_", "MEGU_LOCAL_", "MEGU_JOB_")) or name in ENVIRONMENT:
            raise UserError(f"--env {name}: is set by megu or by whoever runs the cluster, not by a job; leave it out")
        found[name] = value
    return found


def secrets(options: SubmitOptions) -> dict[str, str]:
    """``--secret`` as names and the files that hold their values; an empty file name: the nodes' environment."""
    found = {}
    for word in options.secret:
        name, given, file = word.partition("=")
        if not VARIABLE.fullmatch(name):
            raise UserError(
                "--secret must be the NAME of an environment variable, or NAME=FILE; it never takes a value"
            )
        if given and (not file.startswith("/") or "," in file):  # the word is not repeated: it may be the secret itself
            raise UserError(
                f"--secret {name}=…: after = must stand the absolute path of a file on the nodes, not a value"
            )
        found[name] = file
    return found


def resources(options: SubmitOptions) -> dict[str, float]:
    """``--entrypoint-resources`` as a mapping."""
    found = {}
    for word in options.entrypoint_resources:
        name, _, amount = word.partition("=")
        try:
            found[name] = float(amount)
        except ValueError:
            raise UserError(
                f"--entrypoint-resources {word}: give NAME=AMOUNT, as in --entrypoint-resources head=1"
            ) from None
    return found


def address(options: SubmitOptions) -> str:
    """The job server's URL: ``--address``, else Ray's own variables where they hold one."""
    given = options.address or next((v for name in ADDRESS_VARIABLES if (v := os.environ.get(name))), None)
    if not given:
        raise UserError("--address is missing: give the job server, as in --address http://127.0.0.1:8265")
    url = urlsplit(given)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise UserError(
            f"--address={given}: must be the job server's URL, as in http://127.0.0.1:8265 (by default the "
            "dashboard's port)"
        )
    if url.username or url.password:
        raise UserError("--address holds a user name or a password: use Ray's token (RAY_AUTH_TOKEN_PATH) instead")
    if options.ca is not None and not os.path.exists(options.ca):
        raise UserError(f"--ca={options.ca}: no such file; give the file of certificates to trust")
    return given.rstrip("/")
