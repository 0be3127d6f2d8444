"""Paths in a job's settings: on a cluster they name places that every node sees, or files that travel with the job.

A path relative to the folder in which somebody typed ``megu submit`` means nothing there, and a run folder inside
the job's own working directory would vanish with it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megu_dist.config.compose import config_dir
from megu_dist.config.schema import MeguSettings, SourceSettings
from megu_dist.errors import UserError
from megu_dist.jobs.package import INPUTS

INPUT_FILES = ("forget.ids_file", "oracle.descriptions", "data.coarse", "data.class_names_file")
MODELS = ("model.path", "evaluate.unlearned", "evaluate.retrained", "evaluate.retrained_second", "oracle.path")
PLACES = ("run.dir", "request.dir", "data.path", "data.test_path", "data.cache_dir", "oracle.store")
LISTS = ("report.compare",)
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
PASSWORD = re.compile(r"://[^/?#@]*:[^/?#]*@|://\S*[?&](\w*key\w*|\w*secret\w*|\w*token\w*|sig)=", re.IGNORECASE)


def settle(settings: MeguSettings, shared: str | None, verb: str) -> tuple[list[str], dict[str, Path]]:
    """The words that replace ``verb``'s relative paths, and the input files that travel, by their names in the package."""
    if shared is not None and not shared.startswith("/"):
        raise UserError(f"--shared={shared}: give the absolute path of a folder that all nodes share, as on the nodes")
    words, files = [], {}
    for key in (*INPUT_FILES, *MODELS, *PLACES):
        value = _get(settings, key)
        if value is None or (key == "request.dir" and not verb.startswith("request")):
            continue
        if key in INPUT_FILES and _travels(key, value):
            name = f"{INPUTS}/{hashlib.sha256(Path(value).read_bytes()).hexdigest()[:8]}-{Path(value).name}"
            files[name] = Path(value).resolve()
            words.append(word(key, name))
        elif (settled := _settled(key, value, shared)) != value:
            words.append(word(key, settled))
    for key in LISTS:
        values = _get(settings, key) or []
        if (placed := [_settled(key, value, shared) for value in values]) != list(values):
            words.append(f"{key}=[{','.join(_quoted(value) for value in placed)}]")
    if settings.data.cache_dir == SourceSettings.cache_dir:
        base = _settled("run.dir", settings.run.dir, shared)
        words.append(word("data.cache_dir", f"{base.rstrip('/')}/.cache"))
    return words, files


def refuse_passwords(words: Sequence[str]) -> None:
    """Settings are stored with every result and shown by the dashboard: no key may stand in them."""
    for given in words:
        if PASSWORD.search(given):
            raise UserError(
                f"{given.split('=')[0]}: holds a password, key or token; settings are stored and shown, so name it by "
                "--secret NAME (or let the nodes have access)"
            )


def word(key: str, value: str) -> str:
    """``key=value`` as Hydra reads it back."""
    return f"{key}={_quoted(value)}"


def _quoted(value: str) -> str:
    if re.fullmatch(r"[A-Za-z/][\w./-]*", value):
        return value
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _settled(key: str, value: str, shared: str | None) -> str:
    if key == "data.cache_dir" and value == SourceSettings.cache_dir:
        return value  # replaced above
    if "://" in value:
        if key == "run.dir":
            raise UserError(f"run.dir={value}: must be a folder that all nodes have mounted, not a URI")
        return value
    if value.startswith("/"):
        return value
    if key in MODELS and HUB_ID.fullmatch(value) and not Path(value).exists():
        return value
    if key == "data.coarse" and value in _mappings():
        return value
    if value.startswith("~"):
        raise UserError(f"{key}={value}: ~ is another folder on the cluster; give the path as its nodes see it")
    if shared is not None:
        return f"{shared.rstrip('/')}/{value}"
    raise UserError(
        f"{key}={value} is relative to this machine's current folder, which the cluster does not see: give the path on "
        f"storage that all nodes share, as in {key}=/shared/{value}, or --shared /shared for all such paths"
    )


def _travels(key: str, value: str) -> bool:
    """Whether this is a file here, given by a relative path."""
    named = key == "data.coarse" and value in _mappings()
    return not named and not value.startswith(("/", "~")) and "://" not in value and Path(value).is_file()


def _mappings() -> list[str]:
    """Names of the mappings that come along."""
    return [path.stem for path in (config_dir() / "data" / "coarse").glob("*")]


def _get(settings: Any, key: str) -> Any:
    for part in key.split("."):
        settings = getattr(settings, part, None)
    return settings
