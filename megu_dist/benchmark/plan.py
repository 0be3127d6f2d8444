"""What a benchmark consists of: cells, the words that settle each, and which cells come before which."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from megu_dist.benchmark import search
from megu_dist.config.compose import group_options
from megu_dist.config.registry import components, lookup
from megu_dist.config.schema import BenchmarkSettings
from megu_dist.errors import UserError, nearest

LISTS = ("data", "train", "unlearn", "search")
PARTS = (*LISTS, "targets", "variants")
SECOND = 1000  # added to the training seed of the second retrained model
SHADOW = 2000  # added to the training seed of the first pair of shadow models


@dataclass(frozen=True)
class Group:
    """Requests on the same data that share tuned settings."""

    name: str
    data: tuple[str, ...]
    train: tuple[str, ...]
    unlearn: tuple[str, ...]
    search: tuple[str, ...]
    targets: dict[str, tuple[str, ...]]
    variants: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One piece of work. ``id`` is also its folder; ``needs`` are ids of cells that it reads, by role."""

    id: str
    kind: str  # original | retrained | trial | score | shadow
    words: tuple[str, ...]
    group: str
    target: str = ""
    method: str = ""  # as shown: a method's name, or a variant's
    base: str = ""  # the method whose tuned settings it takes
    seed: int = -1  # place in benchmark.seeds
    trial: int = -1
    needs: dict[str, str] = field(default_factory=dict)
    tried: tuple[str, ...] = ()  # the settings that a trial tries
    fixed: tuple[str, ...] = ()  # a variant's own settings, which go before tuned ones


def read_groups(settings: BenchmarkSettings) -> list[Group]:
    """The groups of ``benchmark.groups``. Raises :class:`UserError` for what is missing or unknown."""
    if not settings.groups:
        have = [name for name in group_options("experiment") if name.startswith("benchmark")]
        raise UserError(
            f"benchmark.groups is empty: choose a benchmark, as in experiment={have[0]}; there is " + ", ".join(have)
        )
    return [_group(str(name), value) for name, value in settings.groups.items() if value is not None]


def _group(name: str, value: Any) -> Group:
    where = f"benchmark.groups.{name}"
    if not isinstance(value, dict):
        raise UserError(f"{where}: must have {', '.join(PARTS)}")
    for key in value:
        if key not in PARTS:
            raise UserError(f"{where}.{key}: unknown key; {nearest(key, PARTS)}")
    # What a null takes the place of is left out, as a group is.
    targets, variants = ({str(k): v for k, v in (value.get(part) or {}).items() if v is not None}
                         for part in ("targets", "variants"))  # fmt: skip
    if not targets:
        raise UserError(f"{where}.targets is empty: name the forget requests, as in {{cat: ['forget.classes=[cat]']}}")
    if not value.get("search"):
        raise UserError(
            f"{where}.search is empty: name the forget request that methods are tuned on, which is not one of "
            "the targets"
        )
    lists = {key: _words(f"{where}.{key}", value.get(key) or []) for key in LISTS}
    aims = {k: _words(f"{where}.targets.{k}", v) for k, v in targets.items()}
    others = {k: _words(f"{where}.variants.{k}", v) for k, v in variants.items()}
    for label, words in others.items():
        if not _value(words, "method"):
            raise UserError(f"{where}.variants.{label}: must say which method it is a variant of, as in method=megu")
    return Group(name, targets=aims, variants=others, **lists)


def _words(where: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(word, str) and "=" in word for word in value):
        raise UserError(f"{where}: must be a list of key=value words")
    return tuple(value)


def _value(words: Iterable[str], key: str) -> str:
    return next((word.split("=", 1)[1] for word in reversed(list(words)) if word.startswith(f"{key}=")), "")


def read_seeds(settings: BenchmarkSettings) -> list[tuple[int, int, int]]:
    """(s_t, s_u, s_e) of each repetition."""
    found = []
    for item in settings.seeds:
        seeds = tuple(item) if isinstance(item, (list, tuple)) else (item,) * 3
        if len(seeds) != 3 or not all(isinstance(seed, int) and seed >= 0 for seed in seeds):
            raise UserError(
                f"benchmark.seeds: {item!r} is neither a seed nor [s_t, s_u, s_e]; give whole numbers of at least 0"
            )
        found.append((seeds[0], seeds[1], seeds[2]))
    if not found:
        raise UserError("benchmark.seeds is empty: give at least one seed")
    return found


def read_methods(settings: BenchmarkSettings) -> list[str]:
    """The methods compared; ``retrain`` is the reference of all and not one of them."""
    known = [name for name in components("method") if name != "retrain"]
    for name in settings.methods:
        if name not in known:
            raise UserError(f"benchmark.methods: there is no method {name!r} to compare; {nearest(name, known)}")
    return list(dict.fromkeys(settings.methods)) or known


def make_cells(settings: BenchmarkSettings) -> list[Cell]:
    """All cells, in the order in which they are started when there is a choice."""
    groups, seeds, methods = read_groups(settings), read_seeds(settings), read_methods(settings)
    cells: dict[str, Cell] = {}
    for group in groups:
        for cell in _group_cells(group, seeds, methods, settings):
            cells.setdefault(cell.id, cell)  # groups with the same data and training share their models
    return list(cells.values())


def _group_cells(
    group: Group, seeds: Sequence[tuple[int, int, int]], methods: list[str], settings: BenchmarkSettings
) -> Iterable[Cell]:
    models = hashlib.sha256("\n".join([*group.data, "", *group.train]).encode()).hexdigest()[:8]
    originals = [f"original/{models}/seed{k}" for k in range(len(seeds))]
    for k, seed in enumerate(seeds):
        yield Cell(originals[k], "original", (*group.data, *group.train, *_seed_words(seed)), group.name, seed=k)
    request = (*group.data, *group.unlearn, *group.search, *_seed_words(seeds[0]), "evaluate.split=validation")
    for method in methods:
        for trial, words in enumerate(search.trials(lookup("method", method).target.search, method, settings.trials)):
            yield Cell(
                f"trial/{group.name}/{method}/{trial}",
                "trial",
                (*request, f"method={method}", *words),
                group.name,
                "search",
                method,
                method,
                0,
                trial,
                {"original": originals[0]},
                words,
            )
    shared_floor = _value((*group.data, *group.unlearn, *next(iter(group.targets.values()))), "forget.scenario") in (
        "",
        "class",
        "subclass",
    )
    for target, words in group.targets.items():
        retrained = [f"retrained/{group.name}/{target}/seed{k}" for k in range(len(seeds))]
        floors = _floors(retrained, shared_floor) if settings.floor else [""] * len(seeds)
        without = (*group.data, *group.train, *words, "exclude_forget=true")
        for k, seed in enumerate(seeds):
            yield Cell(retrained[k], "retrained", (*without, *_seed_words(seed)), group.name, target, seed=k)
            if floors[k] and floors[k] not in retrained:
                other = (seed[0] + SECOND, *seed[1:])
                yield Cell(floors[k], "retrained", (*without, *_seed_words(other)), group.name, target, seed=k)
        for k, seed in enumerate(seeds):
            needs = {"original": originals[k], "retrained": retrained[k]}
            if floors[k]:
                needs["retrained_second"] = floors[k]
            compared = {label: extra for label, extra in group.variants.items() if _value(extra, "method") in methods}
            variants: dict[str, tuple[str, ...]] = {name: (f"method={name}",) for name in methods} | compared
            yield from _scores(group, target, "score", k, seed, variants, needs, settings.trials)
        for n in range(settings.shadows):
            seed = (seeds[0][0] + SHADOW + n, *seeds[0][1:])
            needs = {
                "original": f"original/{models}/shadow{n}",
                "retrained": f"retrained/{group.name}/{target}/shadow{n}",
            }
            yield Cell(
                needs["original"], "original", (*group.data, *group.train, *_seed_words(seed)), group.name, seed=n
            )
            yield Cell(needs["retrained"], "retrained", (*without, *_seed_words(seed)), group.name, target, seed=n)
            plain: dict[str, tuple[str, ...]] = {name: (f"method={name}",) for name in methods}
            yield from _scores(group, target, "shadow", n, seed, plain, needs, settings.trials)


def _scores(
    group: Group,
    target: str,
    kind: str,
    number: int,
    seed: tuple[int, int, int],
    variants: dict[str, tuple[str, ...]],
    needs: dict[str, str],
    trials: int,
) -> Iterable[Cell]:
    """A cell per method or variant, with the tuned settings of its method; ``number`` of the seed or shadow."""
    request = (*group.data, *group.unlearn, *group.targets[target], *_seed_words(seed))
    for label, extra in variants.items():
        base = _value(extra, "method")
        tried = {f"trial{n}": f"trial/{group.name}/{base}/{n}" for n in range(trials)}
        name = f"{kind}/{group.name}/{target}/seed{number}/{label}"
        yield Cell(
            name, kind, (*request, *extra), group.name, target, label, base, number, -1, needs | tried, fixed=extra
        )


def _floors(retrained: list[str], shared: bool) -> list[str]:
    """The second retrained model of each seed: the next seed's, where seeds have the same forget set."""
    if shared and len(retrained) > 1:
        return retrained[1:] + retrained[:1]
    return [f"{name}-second" for name in retrained]


def _seed_words(seed: tuple[int, int, int]) -> tuple[str, ...]:
    return tuple(f"seed.{name}={value}" for name, value in zip(("train", "unlearn", "evaluate"), seed, strict=True))


def merge(*words: Iterable[str]) -> list[str]:
    """All words, with only the last of those that set the same key."""
    found: dict[str, str] = {}
    for word in (word for part in words for word in part):
        key = word.split("=", 1)[0].lstrip("+")
        found.pop(key, None)
        found[key] = word
    return list(found.values())
