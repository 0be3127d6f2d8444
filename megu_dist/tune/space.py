"""The space of a sweep: which keys take which values, and the words that a trial's values make."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megu_dist.config.compose import GROUPS, group_options, known_keys
from megu_dist.config.schema import SweepSettings
from megu_dist.errors import UserError, nearest
from megu_dist.workshop import quoted

RANGE = ("low", "high", "log", "int")
FIXED = ("run.", "report.", "benchmark.", "sweep.", "analyze.", "evaluate.", "data.", "model.", "forget.", "seed.")
PLAIN = re.compile(r"[\w.+-]+")


@dataclass(frozen=True)
class Dimension:
    """A key that is swept: ``values``, or the range from ``low`` to ``high``, both included."""

    key: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    integer: bool = False

    def probes(self) -> tuple[Any, ...]:
        """Values that must all be valid for the dimension to be."""
        ends = (self.low, self.high)
        return self.values or tuple(int(end) for end in ends) if self.integer else self.values or ends

    def domain(self) -> Any:
        """As Ray Tune takes it."""
        from ray import tune

        if self.values:
            return tune.choice(list(self.values))
        if self.integer:
            draw = tune.lograndint if self.log else tune.randint
            return draw(int(self.low), int(self.high) + 1)  # Tune's end is not included
        return tune.loguniform(self.low, self.high) if self.log else tune.uniform(self.low, self.high)


def read_space(settings: SweepSettings, extra_dir: str | None = None) -> list[Dimension]:
    """The dimensions of ``sweep.space``, whose keys may be nested or dotted. Raises :class:`UserError`."""
    if not settings.space:
        raise UserError(
            "sweep.space is empty: name keys and values, as in sweep.space.method.alpha=[0,0.5,1], or choose a study, "
            "as in experiment=sensitivity_noise"
        )
    return [_dimension(key, value, settings, extra_dir) for key, value in _leaves(settings.space, "")]


def _leaves(node: Mapping[Any, Any], prefix: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in node.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and not set(value) & set(RANGE):
            found += _leaves(value, f"{key}.")
        elif value is not None:  # null takes a key of the experiment file out again
            found.append((key, value))
    return found


def _dimension(key: str, value: Any, settings: SweepSettings, extra_dir: str | None) -> Dimension:
    where = f"sweep.space.{key}"
    known = [*(k for k in known_keys() if not k.startswith(FIXED)), *(g for g in GROUPS if g not in ("data", "model"))]
    if key.startswith(FIXED) or key in ("data", "model", "exclude_forget"):
        if key.startswith("seed."):
            raise UserError(
                f"{where}: seeds are no setting to choose; use sweep.seeds, which tries each setting with all"
            )
        raise UserError(f"{where}: {key} cannot be swept; set it once, for all trials")
    if key not in known:
        raise UserError(f"{where}: unknown key {key!r}; {nearest(key, known)}")
    if isinstance(value, Mapping):
        return _range(key, where, value, settings)
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise UserError(f"{where}: give a list of values, or low and high, as in {{low: 0.001, high: 0.1, log: true}}")
    for item in value if key in GROUPS else ():
        if str(item) not in group_options(key, extra_dir):
            raise UserError(
                f"{where}: {key}={item}: no such choice; {nearest(str(item), group_options(key, extra_dir))}"
            )
    if len({str(item) for item in value}) < len(value):
        raise UserError(f"{where}: name each value once, not as in {list(value)}")
    return Dimension(key, tuple(value))


def _range(key: str, where: str, value: Mapping[str, Any], settings: SweepSettings) -> Dimension:
    unknown = [name for name in value if name not in RANGE]
    if unknown:
        raise UserError(f"{where}.{unknown[0]}: unknown; {nearest(unknown[0], RANGE)}")
    if settings.search == "grid":
        raise UserError(
            f"{where}: a grid needs a list of values, and this is a range; or set sweep.search=random or optuna"
        )
    low, high = value.get("low"), value.get("high")
    if not all(isinstance(end, (int, float)) and not isinstance(end, bool) for end in (low, high)):
        raise UserError(f"{where}: low and high must be numbers, not {low!r} and {high!r}")
    assert low is not None
    assert high is not None
    if not low < high:
        raise UserError(f"{where}: low={low} must be below high={high}")
    if value.get("log") and low <= 0:
        raise UserError(f"{where}: low={low} must be above 0 on a logarithmic scale")
    return Dimension(key, (), float(low), float(high), bool(value.get("log")), bool(value.get("int")))


def words(config: Mapping[str, Any]) -> list[str]:
    """key=value words of a trial's values."""
    return [f"{key}={shown(value)}" for key, value in config.items()]


def shown(value: Any) -> str:
    """A value as a word has it; six digits of a number are enough to name it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(shown(item) for item in value) + "]"
    text = str(value)
    return text if PLAIN.fullmatch(text) else quoted(text)
