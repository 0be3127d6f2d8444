"""Turns ``key=value`` words into checked, typed settings. Every mistake is a :class:`UserError` with the nearest choice."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from megu_dist.config.registry import KINDS, components
from megu_dist.config.schema import MeguSettings
from megu_dist.errors import UserError, nearest

FREE = (
    "model.config",
    "oracle.members",
    "benchmark.groups",
    "sweep.space",
)  # their own keys are checked by those who read them
GROUPS = [kind for kind in KINDS if kind != "metric"]  # a metric has no settings of its own


@dataclass(frozen=True)
class Composed:
    """The settings as typed objects, and as the YAML that is stored with every result."""

    settings: MeguSettings
    yaml: str
    words: tuple[str, ...] = ()  # what was composed, so that it can be composed again with other words
    extra_dir: str | None = None


def config_dir() -> Path:
    """The experiment files: inside the installed package, or at the top of a checkout."""
    inside = Path(__file__).resolve().parents[1] / "configs"
    return inside if inside.is_dir() else Path(__file__).resolve().parents[2] / "configs"


def load(words: Sequence[str], defaults: Sequence[str] = (), extra_dir: str | None = None) -> Composed:
    """Composes ``configs/config.yaml`` with a verb's ``defaults`` and the user's ``words``; later ones win."""
    _store_schemas()
    overrides = [*defaults, *(f"++{word}" if _is_free(word) else word for word in words)]
    for word in words:
        _check_syntax(word)
    if extra_dir:
        folder = Path(extra_dir).expanduser().resolve()
        if not folder.is_dir():
            raise UserError(f"--config-dir {extra_dir}: no such folder; give one that is laid out like configs/")
        overrides.append(f"hydra.searchpath=[file://{folder}]")
    _check_keys(words, extra_dir)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        try:
            config = compose("config", overrides=overrides)
            settings = OmegaConf.to_object(config)
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(_explain(error, words)) from None
    assert isinstance(settings, MeguSettings)
    return Composed(settings, OmegaConf.to_yaml(config, resolve=True), (*defaults, *words), extra_dir)


def _store_schemas() -> None:
    store = ConfigStore.instance()
    store.store(name="megu_schema", node=MeguSettings)
    for kind in GROUPS:
        for component in components(kind).values():
            if component.settings is None:
                continue
            node = component.settings(name=component.name)
            store.store(group=kind, name=f"{component.name}_schema", node=node)
            if not (config_dir() / kind / f"{component.name}.yaml").is_file():  # of a plugin
                store.store(group=kind, name=component.name, node=node)


def group_options(group: str, extra_dir: str | None = None) -> list[str]:
    """Names that ``group=…`` takes."""
    folders = [config_dir() / group] + ([Path(extra_dir).expanduser() / group] if extra_dir else [])
    files = {path.stem for folder in folders if folder.is_dir() for path in folder.glob("*.yaml")}
    return sorted(files | set(components(group) if group in GROUPS else ()))


def _is_free(word: str) -> bool:
    """Whether the word sets something inside a free mapping, where Hydra takes new keys only with ``++``."""
    key, _, value = word.partition("=")
    return any(key.startswith(f"{free}.") or (key == free and value != "null") for free in FREE)


def _check_syntax(word: str) -> None:
    if "=" not in word:
        raise UserError(f"{word!r} is not of the form key=value; write train.lr=0.01, say")
    try:
        OverridesParser.create().parse_override(word)
    except (OverrideParseException, HydraException):
        raise UserError(
            f"cannot read {word!r}: put quotes around special characters, as in \"forget.classes=['a, b']\""
        ) from None


def _check_keys(words: Iterable[str], extra_dir: str | None) -> None:
    """Names the offending key before Hydra does, since Hydra's own words do not offer the nearest valid one."""
    groups = {path.name for path in config_dir().iterdir() if path.is_dir()}
    picked: dict[str, str] = {}
    for word in words:
        key, value = word.lstrip("+~").split("=", 1)
        key = key.split("@")[0]
        if key in groups:
            options = group_options(key, extra_dir)
            if value not in options:
                raise UserError(f"{key}={value}: there is no such choice; {nearest(value, options)}")
            picked[key] = value
        elif not word.startswith(("+", "~")) and not key.startswith("hydra."):
            known = list(known_keys())
            if key not in known and not _is_free(key):
                raise UserError(f"unknown key {key!r}: {nearest(key, [*known, *groups])}")


def known_keys() -> list[str]:
    """Every key that some choice of components understands, in dotted form."""
    keys = [path for path, leaf in _leaves(MeguSettings, "") if leaf]
    for kind in GROUPS:
        for component in components(kind).values():
            if component.settings is not None:
                keys += [path for path, _ in _leaves(component.settings, f"{kind}.")]
    return sorted(set(keys))


def _leaves(node: type, prefix: str) -> Iterable[tuple[str, bool]]:
    from dataclasses import is_dataclass
    from typing import get_type_hints

    hints = get_type_hints(node)
    for item in fields(node):
        kind = hints[item.name]
        if is_dataclass(kind):
            yield from _leaves(kind, f"{prefix}{item.name}.")  # type: ignore[arg-type]
        else:
            yield f"{prefix}{item.name}", True


def _explain(error: Exception, words: Sequence[str]) -> str:
    """One sentence out of Hydra's and OmegaConf's several lines."""
    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    text = str(root)
    key = re.search(r"full_key: (\S+)", text)
    first = text.strip().splitlines()[0]
    if key is None:
        return first
    name = key.group(1)
    given = next((word for word in reversed(words) if word.lstrip("+~").split("=", 1)[0] == name), None)
    if "is not in struct" in first or "not in '" in first:
        group = name.split(".")[0]
        return f"{given or name!r}: the chosen {group} has no such setting; `megu show-config VERB` lists what it has"
    return f"{given or name}: {first}"


def to_container(settings: MeguSettings) -> dict[str, Any]:
    """Plain nested dicts and lists of the settings, for content keys and for Ray workers."""
    config: DictConfig = OmegaConf.structured(settings)
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]
