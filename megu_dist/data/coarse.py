"""Coarse labels over fine ones: models learn the coarse classes, a ``subclass`` request forgets fine classes in them.

The grouping comes from a mapping file (``data.coarse``: coarse name → fine names, YAML or JSON) or from a second label
column (``data.coarse_column``). Rows, ids and images are those of the fine source underneath.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from megu_dist.config.schema import SourceSettings
from megu_dist.config.validate import resolve_classes
from megu_dist.data.base import Piece, Source
from megu_dist.data.columns import MAX_CLASSES, as_text, class_label
from megu_dist.data.files import absolute, filesystem, read_bytes
from megu_dist.data.sources.parquet import ParquetSource
from megu_dist.errors import UserError, nearest

FORM = "a file of coarse name: [fine names], as in `pet: [cat, dog]`"
NO_CLASS = -1  # coarse label of a fine class that has no image


@dataclass(frozen=True)
class Grouping:
    """Coarse class names by label, and the coarse label of each fine label (int64; NO_CLASS where it has no image)."""

    names: list[str]
    coarse_of: np.ndarray


class CoarseSource(Source):
    """A source with coarse labels; index and images have the fine label, too, in a column ``fine``."""

    def __init__(self, base: Source, grouping: Grouping) -> None:
        self._base, self.grouping = base, grouping

    @property
    def class_names(self) -> list[str]:
        return self.grouping.names

    @property
    def fine(self) -> Source:
        return self._base

    @property
    def splits(self) -> list[str]:
        return self._base.splits

    def pieces(self, split: str) -> list[Piece]:
        return self._base.pieces(split)

    def num_rows(self, split: str) -> int:
        return self._base.num_rows(split)

    def quick_index(self, split: str) -> bool:
        return self._base.quick_index(split)

    def encoded_bytes(self, split: str) -> float:
        return self._base.encoded_bytes(split)

    def locality(self, split: str, rows: np.ndarray) -> np.ndarray:
        return self._base.locality(split, rows)

    def index(self, piece: Piece) -> pa.Table:
        return self._relabel(self._base.index(piece))

    def gather(self, split: str, rows: np.ndarray) -> pa.Table:
        return self._relabel(self._base.gather(split, rows))

    def fingerprint(self) -> str:
        parts = [self._base.fingerprint(), self.grouping.names, self.grouping.coarse_of.tolist()]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def members(self, label: int) -> list[int]:
        """Fine labels of a coarse class."""
        return [int(fine) for fine in np.flatnonzero(self.grouping.coarse_of == label)]

    def _relabel(self, table: pa.Table) -> pa.Table:
        fine = table["label"]
        place = table.schema.get_field_index("label")
        coarse = pa.array(self.grouping.coarse_of[fine.to_numpy()], pa.int64())
        return table.set_column(place, table.schema.field(place), coarse).append_column("fine", fine)


def group(source: Source, settings: SourceSettings) -> Grouping | None:
    """The grouping that the settings ask for, checked against ``source``, as it is on disk; None where none is."""
    column = getattr(settings, "coarse_column", None)
    if settings.coarse is not None and column is not None:
        raise UserError("data.coarse and data.coarse_column are two ways to say the same: set one of them")
    if settings.coarse is not None:
        return read_mapping(settings.coarse, source.class_names)
    return None if column is None else column_grouping(source, column)


def read_mapping(location: str, fine_names: list[str]) -> Grouping:
    """A mapping file. Raises :class:`UserError` unless every class of the data is in exactly one coarse class."""
    raw = _load(location)
    where = f"data.coarse={location}"
    if not isinstance(raw, dict) or not all(isinstance(value, list) and value for value in raw.values()):
        raise UserError(f"{where}: must be {FORM}")
    place: dict[str, str] = {}
    for coarse, members in raw.items():
        for member in map(str, members):
            if member not in fine_names:
                raise UserError(f"{where}: the data has no class {member!r}; {nearest(member, fine_names)}")
            if member in place:
                raise UserError(
                    f"{where}: {member!r} is in {place[member]!r} and in {str(coarse)!r}; it must be in one"
                )
            place[member] = str(coarse)
    names = [str(name) for name in raw]
    if missing := [name for name in fine_names if name not in place]:
        shown = ", ".join(map(repr, missing[:5])) + (" …" if len(missing) > 5 else "")
        raise UserError(f"{where}: {shown} in no coarse class; each of the data's {len(fine_names)} must be in one")
    return _checked(names, np.array([names.index(place[name]) for name in fine_names]), where)


def _load(location: str) -> Any:
    """The file's content; a bare name is one of the mappings that come with the package."""
    import yaml  # type: ignore[import-untyped,unused-ignore]

    from megu_dist.config.compose import config_dir

    shipped = {path.stem: path for path in (config_dir() / "data" / "coarse").glob("*.json")}
    path = absolute(str(shipped.get(location, location)))
    try:
        text = read_bytes(path, filesystem(path)[1]).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        known = f"; or one that comes with megu: {', '.join(sorted(shipped))}" if "/" not in location else ""
        raise UserError(f"data.coarse={location}: cannot be read ({error}); give {FORM}{known}") from None
    try:
        # Every YAML scalar as text: a class may be called "no" or "10".
        return json.loads(text) if path.endswith(".json") else yaml.load(text, Loader=yaml.BaseLoader)
    except (ValueError, yaml.YAMLError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"data.coarse={location}: cannot be read as YAML or JSON ({first}); give {FORM}") from None


def column_grouping(source: Source, column: str) -> Grouping:
    """From a second label column: each fine class must have one coarse label. Reads both label columns, no image."""
    if not isinstance(source, ParquetSource):
        raise UserError(f"data.coarse_column={column}: this data has no columns; set data.coarse={FORM}")
    schema = source.schema()
    if column not in schema.names:
        raise UserError(f"data.coarse_column: no column {column!r}; {nearest(column, schema.names)}")
    values: dict[int, set[Any]] = {}
    for split in source.splits:
        _collect(values, source.beside_labels(split, column), column)
    fine_names = source.class_names
    for label, found in values.items():
        if len(found) > 1:
            shown = " and ".join(sorted(repr(value) for value in found)[:3])
            raise UserError(
                f"data.coarse_column={column}: images of {fine_names[label]!r} have {shown} there; "
                "a fine class must lie in one coarse class"
            )
    only = {label: next(iter(found)) for label, found in values.items()}
    names, number = _column_names(set(only.values()), class_label(schema, column), column)
    coarse_of = np.array([number[only[label]] if label in only else NO_CLASS for label in range(len(fine_names))])
    return _checked(names, coarse_of, f"data.coarse_column={column}")


def _collect(values: dict[int, set[Any]], tables: Iterable[pa.Table], column: str) -> None:
    for table in tables:
        kind = table.schema.field("value").type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise UserError(
                f"data.coarse_column: {column!r} holds {kind}, not class labels; name a column of numbers or names"
            )
        value = table["value"] if pa.types.is_integer(kind) else as_text(table["value"])
        if value.null_count:
            raise UserError(
                f"data.coarse_column={column}: {value.null_count} images have no coarse label; each must have one"
            )
        pairs = pa.table({"label": table["label"], "value": value}).group_by(["label", "value"]).aggregate([])
        for pair in pairs.to_pylist():
            values.setdefault(pair["label"], set()).add(pair["value"])


def _column_names(values: set[Any], stated: list[str] | None, column: str) -> tuple[list[str], dict[Any, int]]:
    """Coarse names by label, and the label of each value of the column."""
    if all(isinstance(value, str) for value in values):
        names = stated or sorted(values)
        if unknown := sorted(values - set(names)):
            raise UserError(f"data.coarse_column={column}: {unknown[0]!r} is no class; {nearest(unknown[0], names)}")
        return names, {name: label for label, name in enumerate(names)}
    top, bottom = max(values), min(values)
    names = stated or [str(label) for label in range(min(top, MAX_CLASSES) + 1)]
    if bottom < 0 or top >= len(names):
        raise UserError(
            f"data.coarse_column={column}: labels go from {bottom} to {top}, classes from 0 to {len(names) - 1}; "
            "each label must be the number of a class"
        )
    return names, {label: label for label in range(len(names))}


def _checked(names: list[str], coarse_of: np.ndarray, where: str) -> Grouping:
    if len(set(names)) < len(names):
        raise UserError(f"{where}: two coarse classes have the same name; each must have its own")
    if len(names) < 2:
        raise UserError(f"{where}: one coarse class alone leaves nothing to tell apart; name at least two")
    return Grouping(names, coarse_of.astype(np.int64))


def resolve_subclasses(wanted: list[object], source: Source) -> list[int]:
    """``forget.classes`` of a ``subclass`` request → fine labels. Raises :class:`UserError`."""
    if not isinstance(source, CoarseSource):
        raise UserError(
            "forget.scenario=subclass needs coarse labels that the model learns: set data.coarse=FILE "
            f"({FORM}) or data.coarse_column=NAME"
        )
    fine_names = source.fine.class_names
    for name in map(str, wanted):
        if name not in fine_names and name in source.class_names:
            members = [fine_names[fine] for fine in source.members(source.class_names.index(name))]
            raise UserError(
                f"forget.classes: {name!r} is a coarse class: name fine classes ({', '.join(members[:10])}), "
                "or forget it as a whole with forget.scenario=class"
            )
    labels = resolve_classes(wanted, fine_names)
    for coarse in sorted({int(source.grouping.coarse_of[label]) for label in labels} - {NO_CLASS}):
        if set(source.members(coarse)) <= set(labels):
            name = source.class_names[coarse]
            raise UserError(
                f"forget.classes names every fine class of {name!r}; to forget it as a whole, set "
                "forget.scenario=class "
                f"'forget.classes=[{name}]'"
            )
    return labels


def refuse_fine_names(wanted: list[object], source: Source) -> None:
    """A ``class`` request that names a fine class: says which scenario is meant."""
    fine = source.fine
    for name in map(str, wanted):
        if fine is not None and name not in source.class_names and name in fine.class_names:
            raise UserError(
                f"forget.classes: {name!r} is a fine class, the model knows {', '.join(source.class_names[:20])}: "
                "set forget.scenario=subclass"
            )
