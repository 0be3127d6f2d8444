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
