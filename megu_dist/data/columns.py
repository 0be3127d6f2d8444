"""Which columns of a Parquet file hold the image, the label and the id, and what the classes are called."""

from __future__ import annotations

import json
import posixpath
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from megu_dist.data.files import absolute, filesystem, read_bytes, thread_map
from megu_dist.errors import UserError, nearest

IMAGE_NAMES = ("image", "img", "images", "picture", "photo", "jpg", "jpeg", "png", "bytes", "pixels")
LABEL_NAMES = ("label", "labels", "fine_label", "target", "class")
MAX_CLASSES = 1_000_000  # integer labels beyond it are ids or hashes, not classes


@dataclass(frozen=True)
class Columns:
    """The columns that a source reads, their types, and the class names that the file itself states."""

    image: str
    label: str
    id: str | None
    types: dict[str, Any]
    names: list[str] | None  # of the label's ClassLabel feature

    @property
    def text_labels(self) -> bool:
        """Whether labels are class names rather than numbers."""
        return _is_text(self.types[self.label])

    def check(self, schema: Any, file: str, first_file: str) -> None:
        """Raise unless ``file`` has the same columns, types and class names as the first file."""
        settings = {self.image: "data.image_column", self.label: "data.label_column", self.id: "data.id_column"}
        for column, expected in self.types.items():
            _require(schema, column, file, settings[column])
            if (found := schema.field(column).type) != expected:
                raise UserError(
                    f"column {column!r} is {found} in {file} but {expected} in {first_file}; write all files "
                    "with one type"
                )
        if (names := class_label(schema, self.label)) != self.names:
            raise UserError(
                f"class names of column {self.label!r} differ: {names} in {file}, {self.names} in {first_file}; "
                "write all files with the same names, or give files of one data set"
            )


def resolve(schema: Any, file: str, image: str | None, label: str | None, identity: str | None) -> Columns:
    """The columns named by the settings, or found by type and name."""
    for column, key in ((image, "data.image_column"), (label, "data.label_column"), (identity, "data.id_column")):
        if column is not None:
            _require(schema, column, file, key)
    if image is not None and not _is_image(schema.field(image).type):
        held = schema.field(image).type
        raise UserError(
            f"data.image_column: {image!r} of {file} holds {held}, not encoded images; name a column of binary "
            "or struct<bytes, path>"
        )
    if label is not None and not _is_label(schema.field(label).type):
        raise UserError(
            f"data.label_column: {label!r} of {file} holds {schema.field(label).type}, not class labels; "
            "name a column of whole numbers or text"
        )
    image = image or _find_image(schema, file)
    label = label or _find_label(schema, file)
    types = {column: schema.field(column).type for column in (image, label, identity) if column}
    return Columns(image, label, identity, types, class_label(schema, label))


def read_class_names(location: str) -> list[str]:
    """Class names of ``data.class_names_file``: text (one per line) or a JSON list."""
    location = absolute(location)
    return class_names_at(location, filesystem(location)[1], "data.class_names_file")


def class_names_at(root: str, path: str, key: str) -> list[str]:
    """Class names of a file in the file system of ``root``; ``key`` names it in errors."""
    try:
        text = read_bytes(root, path).decode("utf-8-sig")
        is_json = text.lstrip().startswith(("[", "{"))
        names = json.loads(text) if is_json else [line.strip() for line in text.splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(
            f"{key}: cannot read {path} as a list of names: {error}; give text, one name per line, or a JSON list"
        ) from error
    if not isinstance(names, list):
        raise UserError(
            f"{key}: {path} holds JSON that is no list; give the names as a list, in the order of the labels"
        )
    names = [str(name) for name in names if name != ""]
    repeated = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if not names or repeated:
        raise UserError(
            f"{key}: {path} " + (f"repeats {repeated}" if repeated else "is empty") + "; each class must have one name"
        )
    return names


def as_text(values: Any) -> Any:
    """String, large string and dictionary columns as plain strings."""
    return values.cast(pa.string())


def image_bytes(column: Any, root: str, path: str, in_file: np.ndarray) -> Any:
    """Encoded images; those kept as paths are read from beside the Parquet file."""
    if not pa.types.is_struct(column.type):
        images, paths = column.cast(pa.binary()), None
    else:
        images = pc.struct_field(column, "bytes").cast(pa.binary())
        has_path = column.type.get_field_index("path") >= 0
        paths = pc.struct_field(column, "path") if has_path else None
    if not images.null_count:
        return images
    values, missing = images.to_pylist(), np.flatnonzero(images.is_null().to_numpy()).tolist()
    names = paths.to_pylist() if paths is not None else [None] * len(values)

    def read(position: int) -> bytes:
        name = names[position]
        if not name:
            raise UserError(
                f"row {in_file[position]} of {path} has no image: neither bytes nor a path; take the row out, "
                "or set data.max_bad_fraction"
            )
        try:
            return read_bytes(root, posixpath.join(posixpath.dirname(path), name))
        except OSError as error:
            raise UserError(
                f"row {in_file[position]} of {path}: cannot read its image {name} ({error}); paths must be "
                "relative to the file's folder"
            ) from error

    for position, content in zip(missing, thread_map(read, missing, True), strict=True):
        values[position] = content
    return pa.array(values, pa.binary())


def _require(schema: Any, column: str, file: str, key: str) -> None:
    if column not in schema.names:
        raise UserError(f"{key}: no column {column!r} in {file}: {nearest(column, schema.names)}")


def _is_binary(kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_image(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        fields = {field.name: field.type for field in kind}
        # A folder of images loaded without their bytes has a `bytes` field of type null.
        return "bytes" in fields and (_is_binary(fields["bytes"]) or pa.types.is_null(fields["bytes"]))
    return _is_binary(kind)


def _is_text(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_label(kind: Any) -> bool:
    return bool(pa.types.is_integer(kind)) or _is_text(kind)


def _find_image(schema: Any, file: str) -> str:
    found = [field.name for field in schema if _is_image(field.type)]
    features = _features(schema)
    marked = [name for name in found if _feature_type(features.get(name)) == "Image"]
    named = [name for wanted in IMAGE_NAMES for name in found if name.lower() == wanted]
    for candidates in (marked, named, found):
        if len(candidates) == 1 or (candidates and candidates is named):
            return candidates[0]
    if found:
        raise UserError(f"{file} has several image columns: set data.image_column to one of {', '.join(found)}")
    raise UserError(f"no image column ('image', binary or struct<bytes, path>) in {file}: set data.image_column; "
                    f"{nearest('image', schema.names)}")  # fmt: skip


def _find_label(schema: Any, file: str) -> str:
    marked = [name for name in schema.names if class_label(schema, name) is not None]
    fitting = [field.name for field in schema if _is_label(field.type)]
    named = [name for wanted in LABEL_NAMES for name in fitting if name.lower() == wanted]
    # Several ClassLabel columns (coarse and fine): the conventional name decides.
    for candidates in ([name for name in named if name in marked], marked, named):
        if len(candidates) == 1 or (candidates and candidates is not marked):
            return candidates[0]
    if marked:
        raise UserError(f"{file} has several label columns: set data.label_column to one of {', '.join(marked)}")
    raise UserError(
        f"no label column ('label') in {file}: set data.label_column; {nearest('label', fitting or schema.names)}"
    )


def _features(schema: Any) -> dict[str, Any]:
    """Features of the `huggingface` schema metadata; empty where there are none."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}


def _feature_type(feature: Any) -> str | None:
    return feature.get("_type") if isinstance(feature, dict) else None


def class_label(schema: Any, column: str) -> list[str] | None:
    """Names of a column's ClassLabel feature; None where it has none."""
    feature = _features(schema).get(column)
    if not isinstance(feature, dict) or feature.get("_type") != "ClassLabel":
        return None
    if not isinstance(feature.get("names"), list):
        return None
    return [str(name) for name in feature["names"]]
