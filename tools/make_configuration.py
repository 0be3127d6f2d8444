"""Writes docs/configuration.md from the typed settings: their docstrings, comments, defaults, choices and ranges.

``python tools/make_configuration.py`` writes it; with ``--check`` it only says whether the page is as it should be.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import yaml

from megu_dist.config.compose import GROUPS, config_dir, group_options
from megu_dist.config.registry import components
from megu_dist.config.schema import MeguSettings
from megu_dist.config.validate import CHOICES, RANGES

PAGE = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"
HEAD = """# Settings

Every verb takes `key=value` words: `train.lr=0.01`, `'forget.classes=[cat, dog]'`, `model.path=null`. A word such as
`data=parquet` picks one of a group, which brings settings of its own. `experiment=NAME` fills in a whole file; words that you
give win over it. `megu show-config VERB …` prints what a command would run with, `megu list` what there is to choose from.
`--config-dir DIR` adds a folder of your own YAML files, laid out like `configs/`. A wrong key or value ends with exit status 2.

Units: images are in pixel units [0, 1]; rates and fractions are in [0, 1]; sizes are in rows; `null` means not set.

This page is made by `make docs` from the settings' own source.
"""
TYPES = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false", "None": "null", "Any": "any"}


@dataclasses.dataclass(frozen=True)
class Setting:
    """One key: its name, type and default as in the source, what its comment says, and the heading above it."""

    name: str
    type: str
    default: str
    meaning: str
    heading: str


def settings_of(cls: type) -> list[Setting]:
    """The fields that ``cls`` itself declares, with the comments beside them."""
    source = inspect.getsource(cls)
    tree = ast.parse(source).body[0]
    assert isinstance(tree, ast.ClassDef)
    comments = {
        token.start[0]: (token.string.lstrip("# "), token.line.strip().startswith("#"))
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found, heading, seen = [], "", 0
    for node in tree.body:
        if not isinstance(node, ast.AnnAssign) or "ClassVar" in ast.unparse(node.annotation):
            continue
        for line in range(seen + 1, node.lineno):
            if line in comments and comments[line][1]:
                heading = comments[line][0]
        seen = node.end_lineno or node.lineno
        inside = [comments[line][0] for line in range(node.lineno, seen + 1) if line in comments]
        default = _default(node.value)
        if default.isupper():  # a constant
            default = str(getattr(cls, ast.unparse(node.target)))
        found.append(Setting(ast.unparse(node.target), _type(node.annotation), default, " ".join(inside), heading))
    return found


def _type(node: ast.expr) -> str:
    text = ast.unparse(node)
    if text.startswith(("list", "dict")):
        return {"list": "list", "dict": "mapping"}[text[:4]]
    return " or ".join(TYPES.get(part.strip(), part.strip()) for part in text.split("|"))


def _default(node: ast.expr | None) -> str:
    if node is None or ast.unparse(node) == "MISSING":
        return ""
    if isinstance(node, ast.Call):  # field(default_factory=…)
        made = node.keywords[0].value
        empty = {"list": "[]", "dict": "{}"}.get(ast.unparse(made), "")
        text = ast.unparse(made.body) if isinstance(made, ast.Lambda) else empty
    else:
        text = ast.unparse(node)
    value = text.strip("'\"") if text[:1] in ("'", '"') else text
    return {"None": "null", "True": "true", "False": "false"}.get(value, value)


def rows(prefix: str, settings: list[Setting], own: bool = True) -> Iterator[str]:
    """A table of keys, with a line for each heading in the source."""
    yield "| key | type | default | |\n|---|---|---|---|"
    heading = ""
    for one in settings:
        if one.heading != heading and own:
            heading = one.heading
            yield f"| *{heading}* | | | |"
        key = f"{prefix}{one.name}"
        default = f"`{one.default}`" if one.default else ""
        yield f"| `{key}` | {one.type} | {default} | {_meaning(key, one).replace('|', chr(92) + '|')} |"


def _meaning(key: str, one: Setting) -> str:
    text = one.meaning
    words = {word for word in re.findall(r"\w+", text)}
    if key in CHOICES and not words >= set(CHOICES[key]):
        text = f"{' | '.join(CHOICES[key])}; {text}"
    if key in RANGES:
        text = f"{text}; {RANGES[key][0]}" if text else RANGES[key][0]
    return text.strip("; ")


def _doc(cls: type) -> str:
    """A docstring as Markdown."""
    text = inspect.cleandoc(cls.__doc__ or "")
    return re.sub(r":class:`~?([\w.]+)`", lambda found: f"`{found[1].rpartition('.')[2]}`", text).replace("``", "`")


def section(name: str, cls: type) -> Iterator[str]:
    """A section of the settings; for a group, its base and then each choice."""
    group = name in GROUPS
    yield f"\n## `{name}`\n\n{_doc(cls)}\n"
    base = [one for one in settings_of(cls) if not (group and one.name == "name")]
    if base:
        yield from rows(f"{name}.", base)
    if name == "train":
        for choice in group_options("train"):
            yield from _yaml_choice(choice)
    for component in components(name).values() if group else ():
        yield f"\n### `{name}={component.name}`\n\n{component.summary}\n"
        assert component.settings is not None
        own: dict[str, Setting] = {}
        for parent in reversed(component.settings.__mro__):
            if dataclasses.is_dataclass(parent) and parent is not cls and issubclass(parent, cls):
                own |= {one.name: one for one in settings_of(parent)}
        known = {one.name: one for one in base}
        own = {n: dataclasses.replace(one, meaning=one.meaning or known[n].meaning) if n in known else one
               for n, one in own.items()}  # fmt: skip
        if own:
            yield from rows(f"{name}.", list(own.values()), own=False)


def _yaml_choice(name: str) -> Iterator[str]:
    file = config_dir() / "train" / f"{name}.yaml"
    values = yaml.safe_load(file.read_text())
    about = file.read_text().splitlines()[0].lstrip("# ")
    told = ", ".join(f"`train.{key}={str(value).lower()}`" for key, value in values.items())
    yield f"\n`train={name}`: {about} {told}."


def experiments() -> Iterator[str]:
    """Name and first comment of each file."""
    yield "\n## `experiment`\n\n| experiment | |\n|---|---|"
    for name in group_options("experiment"):
        lines = (config_dir() / "experiment" / f"{name}.yaml").read_text().splitlines()
        about = " ".join(line.lstrip("# ") for line in lines if line.startswith("# ") and "@package" not in line)
        yield f"| `{name}` | {about} |"


def page() -> str:
    """The whole page."""
    lines = [HEAD]
    own = []
    hints = {one.name: one for one in settings_of(MeguSettings)}
    for item in dataclasses.fields(MeguSettings):
        kind = inspect.get_annotations(MeguSettings, eval_str=True)[item.name]
        if dataclasses.is_dataclass(kind):
            lines += section(item.name, kind)  # type: ignore[arg-type]
        else:
            own.append(hints[item.name])
    lines += ["\n## Others\n", *rows("", own), *experiments()]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Exit status 1 where ``--check`` finds the page stale."""
    made = page()
    if "--check" in sys.argv[1:]:
        stale = not PAGE.is_file() or PAGE.read_text() != made
        print(f"{PAGE} is stale: run `make docs`" if stale else f"{PAGE} is as it should be")
        return int(stale)
    PAGE.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
