"""Finds the components of the package by name: data sources, models, oracles, methods, metrics, engines.

A component is one module with a settings dataclass and a class decorated by :func:`register`; importing the folder is
all it takes to make it known, so adding one touches no other file. Component modules keep heavy imports inside
functions: the command line reads every one of them to know the valid settings.

Other packages add components by an entry point of group ``megu_dist`` that names a module (docs/extending.md).
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any, TypeVar

from megu_dist.errors import UserError, nearest

KINDS = {
    "data": "megu_dist.data.sources",
    "model": "megu_dist.models.architectures",
    "oracle": "megu_dist.oracle.backends",
    "method": "megu_dist.methods",
    "metric": "megu_dist.metrics",
    "engine": "megu_dist.engine.backends",
}
PLUGINS = "megu_dist"  # group of entry points
T = TypeVar("T")


@dataclass(frozen=True)
class Component:
    """A registered component: its class (or function), its settings dataclass (None for metrics), one line about it."""

    kind: str
    name: str
    target: Any
    settings: type | None
    summary: str


_COMPONENTS: dict[str, dict[str, Component]] = {kind: {} for kind in KINDS}


def register(kind: str, name: str, settings: type | None = None) -> Callable[[T], T]:
    """Class decorator: makes ``target`` known as component ``name`` of ``kind``."""

    def decorate(target: T) -> T:
        summary = (target.__doc__ or "").strip().splitlines()[0] if target.__doc__ else ""
        _COMPONENTS[kind][name] = Component(kind, name, target, settings, summary)
        return target

    return decorate


def components(kind: str) -> dict[str, Component]:
    """All components of ``kind`` by name, in alphabetical order."""
    package = importlib.import_module(KINDS[kind])
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{KINDS[kind]}.{module.name}")
    _import_plugins()
    return dict(sorted(_COMPONENTS[kind].items()))


@cache
def _import_plugins() -> None:
    """What other installed packages bring; in every process, workers included."""
    for point in entry_points(group=PLUGINS):
        try:
            point.load()
        except Exception as error:
            package = point.dist.name if point.dist else "?"
            raise UserError(
                f"the plugin {point.name!r} ({point.value}, of the package {package}) cannot be imported: "
                f"{type(error).__name__}: {error}; mend it, or pip uninstall {package}"
            ) from error


def lookup(kind: str, name: str) -> Component:
    """The component ``name`` of ``kind``. Raises :class:`UserError` that names the nearest valid ones."""
    found = components(kind)
    if name not in found:
        raise UserError(f"unknown {kind} {name!r}: {nearest(name, found)}")
    return found[name]
