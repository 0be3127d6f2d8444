"""Ratings on disk: one JSON line each, appended as it arrives, shared by any number of jobs.

A line is found by (oracle id, prompt hash, first concept's hash, second concept's hash). Lines are appended in one write
under a file lock; a line that a dying process left unfinished is skipped, so nothing ever needs repair.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from megu_dist.oracle.base import MAX_RATING, About, Pair, Rating


def rating_key(about: About, pair: Pair) -> str:
    """The key of a question; for a symmetric backend both orders share one."""
    first, second = pair.first.key, pair.second.key
    if about.symmetric and second < first:
        first, second = second, first
    prompt = about.prompts[pair.phrasing]
    return hashlib.sha256("\0".join((about.id, prompt, first, second)).encode()).hexdigest()[:32]


class RatingStore:
    """All stored ratings of one oracle, in ``folder/<oracle>.jsonl``."""

    def __init__(self, folder: Path, about: About) -> None:
        slug = re.sub(r"[^\w.-]+", "-", about.id)[:60].strip("-")
        self.path = folder / f"{slug}-{hashlib.sha256(about.id.encode()).hexdigest()[:8]}.jsonl"
        self.about = about
        self._known: dict[str, Rating] = {}
        self._times: list[float] = []
        self._offset = 0
        self.refresh()

    def get(self, key: str) -> Rating | None:
        """The stored rating, as of the last :meth:`refresh`."""
        return self._known.get(key)

    def __len__(self) -> int:
        return len(self._known)

    def refresh(self) -> None:
        """Takes in whole lines that this or another process appended since the last call."""
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            file.seek(self._offset)
            new = file.read()
        end = new.rfind(b"\n") + 1
        self._offset += end
        for line in new[:end].splitlines():
            try:
                entry = json.loads(line)
                key, when = str(entry["key"]), float(entry["time"])
                rating = Rating(float(entry["rating"]), int(entry["prompt_tokens"]), int(entry["answer_tokens"]))
            except (ValueError, KeyError, TypeError, OverflowError):
                continue  # the torn last line of a process that died
            if 0 <= rating.value <= MAX_RATING + 1e-6:  # as far as a mean may round
                self._known[key] = rating
                self._times.append(when)

    def add(self, rated: Iterable[tuple[Pair, Rating]]) -> None:
        """Appends ratings durably. One that is not a number is not kept: a later fill asks again."""
        lines = []
        for pair, rating in rated:
            if rating.value != rating.value:
                continue
            key = rating_key(self.about, pair)
            self._known[key] = rating
            entry = {"key": key, "oracle": self.about.id, "prompt": self.about.prompts[pair.phrasing]}
            entry |= {"first": pair.first.name, "second": pair.second.name}
            entry |= {"first_key": pair.first.key[:16], "second_key": pair.second.key[:16]}
            numbers = {"rating": rating.value, "prompt_tokens": rating.prompt_tokens}
            numbers |= {"answer_tokens": rating.answer_tokens, "time": round(time.time(), 3)}
            lines.append(json.dumps({**entry, **numbers}, ensure_ascii=False))
        if not lines:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # A name made of a file name that cannot be decoded becomes an escape, which is JSON still.
        data = ("\n".join(lines) + "\n").encode(errors="backslashreplace")
        with self.path.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(size - 1)
                if file.read(1) != b"\n":
                    data = b"\n" + data
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    @contextmanager
    def place(self) -> Iterator[int]:
        """0 for the first of the jobs that fill this store now, 1 for the second, 2 for any further one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for place in (0, 1):
            with self.path.with_suffix(f".lock{place}").open("w") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    continue
                yield place
                return
        yield 2

    def experience(self) -> tuple[float, float, float] | None:
        """Mean prompt tokens, answer tokens and seconds per stored rating; pauses over a minute are left out."""
        if len(self._known) < 2:
            return None
        count = len(self._known)
        times = sorted(self._times)
        gaps = [b - a for a, b in pairwise(times) if b - a < 60]
        prompt = sum(r.prompt_tokens for r in self._known.values()) / count
        answer = sum(r.answer_tokens for r in self._known.values()) / count
        return prompt, answer, sum(gaps) / max(1, len(gaps))
