"""Every message of the package that a user can mend, as it stands in the source: ``{…}`` are values."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pages import ROOT

PACKAGE = ROOT / "megu_dist"
ERRORS = ("UserError", "Unreachable")


@dataclass(frozen=True)
class Message:
    """Where a message is raised, and its text."""

    file: str
    line: int
    text: str


def messages() -> list[Message]:
    """All of them, by file and line."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        texts = _constants(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS and node.args:
                text = "; ".join(
                    "".join(_text(part, texts)) for part in node.args
                )  # Unreachable: what is wrong; how to mend it
                found.append(Message(str(path.relative_to(PACKAGE)), node.lineno, text))
    return sorted(found, key=lambda one: (one.file, one.line))


def _constants(tree: ast.Module) -> dict[str, str]:
    """Texts of the module that messages are put together from."""
    found: dict[str, str] = {}
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant() | ast.JoinedStr() as value):
                found[name] = "".join(_text(value, found))
    return found


def _text(node: ast.expr, texts: dict[str, str]) -> Iterator[str]:
    """The constant parts as they are, and each value as its expression in braces."""
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.Name(id=name) if name in texts:
            yield texts[name]
        case ast.JoinedStr(values=parts):
            for part in parts:
                yield from _text(part, texts)
        case ast.FormattedValue(value=inner):
            yield from _text(inner, texts) if isinstance(inner, ast.Name) else [f"{{{ast.unparse(inner)}}}"]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            yield from _text(left, texts)
            yield from _text(right, texts)
        case _:
            yield f"{{{ast.unparse(node)}}}"


def listed(found: list[Message]) -> str:
    """The golden file: by source file, one message a line, in the order of the source."""
    lines: list[str] = []
    file = ""
    for one in found:
        if one.file != file:
            file = one.file
            lines.append(f"\n# {file}")
        lines.append(one.text.replace("\n", "⏎"))
    return "\n".join(lines).lstrip() + "\n"


if __name__ == "__main__":
    Path(ROOT / "tests" / "golden" / "messages.txt").write_text(listed(messages()))
