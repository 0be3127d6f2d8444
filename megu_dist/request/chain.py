"""A file of JSON lines in which each line holds the hash of the one before, so that a change of any line shows.

A line is canonical JSON (sorted keys, no spaces, ASCII) whose last member is ``"hash"``: the SHA-256 of the line as it
is without that member. ``verify_records.py`` beside this file checks the same without importing anything of megu.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megu_dist.errors import UserError
from megu_dist.request import durable

Entry = dict[str, Any]
START = "0" * 64  # what the first line holds as the hash of the one before


def canonical(value: Any) -> str:
    """JSON that is the same text for the same value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(text: str | bytes) -> str:
    """SHA-256 in hexadecimal digits."""
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()


def finite(value: Any) -> Any:
    """The same with ``None`` for numbers that JSON has not."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def line_of(entry: Entry) -> str:
    """The line of an entry without a hash."""
    body = canonical(entry)
    return f'{body[:-1]},"hash":"{digest(body)}"}}\n'


class Chain:
    """One file. Whoever appends must hold the ledger's lock."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[Entry]:
        """The entries of all whole lines. Raises :class:`UserError` where the chain is broken."""
        lines = self.path.read_bytes().split(b"\n")[:-1] if self.path.is_file() else []
        entries: list[Entry] = []
        previous = START
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
                body = {key: value for key, value in entry.items() if key != "hash"}
                good = line_of(body).encode() == line + b"\n" and entry["previous"] == previous
            except (ValueError, KeyError, AttributeError):
                good = False
            if not good:
                raise UserError(
                    f"{self.path}, line {number} was changed after it was written, or lines before it were: look with "
                    "`megu request verify`, and put a copy from a backup in its place; nothing is added to it as it is"
                )
            entries.append(entry)
            previous = entry["hash"]
        return entries

    def mend(self) -> int:
        """Cuts off a last line that a crash left unfinished; how many bytes that were."""
        data = self.path.read_bytes() if self.path.is_file() else b""
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            durable.cut(self.path, whole)
        return len(data) - whole

    def append(self, entries: Sequence[Entry]) -> list[Entry]:
        """Adds entries, one write each; as they are then, with number, previous hash and hash."""
        self.mend()
        known = self.read()
        number, previous = len(known), known[-1]["hash"] if known else START
        added = []
        for entry in entries:
            line = line_of({**entry, "number": number, "previous": previous})
            durable.append(self.path, line)
            added.append(json.loads(line))
            number, previous = number + 1, added[-1]["hash"]
        return added
