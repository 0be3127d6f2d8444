"""What the tests of the documentation read: pages, their code blocks, and the commands in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "cluster" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the paragraph before it."""

    language: str
    text: str
    before: str


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page."""
    text = page.read_text()
    return [Block(m[1], m[2], text[: m.start()].rstrip().rpartition("\n\n")[2]) for m in _BLOCK.finditer(text)]


def files(page: Path) -> dict[str, str]:
    """Blocks that are whole files: the paragraph before ends with `NAME`: and the block holds its content."""
    found = {}
    for block in blocks(page):
        name = re.search(r"`([\w./-]+\.\w+)`:$", block.before)
        if name:
            found[name[1]] = block.text
    return found


def commands(text: str) -> list[str]:
    """``megu …`` command lines of a block of shell: continued lines joined, comments and prompts left out."""
    joined = re.sub(r"\\\n\s*", " ", text)
    found = []
    for line in joined.splitlines():
        line = line.strip().removeprefix("$ ")
        start = re.match(r"(?:\S+=\S+ )*megu(?= |$)", line)  # variables may come before
        if start:
            found.append(re.split(r"\s+#\s|\s+\||\s+>|\s+&&|;\s", line[start.end() - len("megu") :])[0].strip())
    return found


def spans(page: Path) -> list[str]:
    """Inline code of a page, blocks left out; a span may go over a line's end."""
    text = _BLOCK.sub("", page.read_text())
    return [re.sub(r"\s*\n\s*", " ", m[2]) for m in re.finditer(r"(`+)(.+?)\1", text, re.DOTALL)]


def page_commands(page: Path) -> list[str]:
    """All commands of a page, in blocks and in the text."""
    found = [
        one for block in blocks(page) if block.language in ("sh", "bash", "text", "") for one in commands(block.text)
    ]
    return found + [one for span in spans(page) if span.startswith("megu ") for one in commands(span)]
