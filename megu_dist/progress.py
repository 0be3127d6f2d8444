"""Progress on the driver: rich bars on a terminal, plain lines elsewhere; everybody else's output goes to a log file."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

LINE_EVERY_S = 10.0


class Reporter:
    """Names the running stage with done/total, rate and time left. ``console`` is where users read."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.console = Console(file=stream or sys.stderr)
        self._bars: Progress | None = None
        self._task: TaskID | None = None
        self._stage, self._done, self._total, self._unit = "", 0, 0, ""
        self._start = self._printed = time.monotonic()

    @contextmanager
    def stage(self, name: str, total: int, unit: str) -> Iterator[None]:
        """Shows ``name`` while the block runs; ``total`` of 0 means unknown."""
        self._stage, self._done, self._total, self._unit = name, 0, total, unit
        self._start = self._printed = time.monotonic()
        if not self.console.is_terminal:
            self.console.print(f"{name}: started" + (f", {total:,} {unit}" if total else ""), highlight=False)
            yield
        else:
            columns = (
                TextColumn("[bold]{task.description:9}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[unit]} · {task.fields[rate]}"),
                TimeRemainingColumn(),
            )
            with Progress(*columns, console=self.console, transient=True) as self._bars:
                self._task = self._bars.add_task(name, total=total or None, unit=unit, rate="…")
                yield
            self._bars = None
        seconds = time.monotonic() - self._start
        self.console.print(f"{name}: {self._done:,} {unit} in {seconds:.1f} s", highlight=False)

    def skipped(self, name: str) -> None:
        """Says that a finished stage was taken from the run folder."""
        self.console.print(f"{name}: already done", highlight=False)

    @property
    def done(self) -> int:
        """How much of the running stage is done."""
        return self._done

    def update(self, done: int) -> None:
        """Sets how much of the stage is done."""
        self._done = done
        now = time.monotonic()
        rate = done / max(1e-6, now - self._start)
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=done, rate=f"{rate:,.0f}/s")
        elif not self.console.is_terminal and now - self._printed >= LINE_EVERY_S and self._total and done:
            self._printed = now
            left = (self._total - done) / max(1e-6, rate)
            self.console.print(
                f"{self._stage}: {done:,}/{self._total:,} {self._unit}, {rate:,.0f}/s, {left:.0f} s left",
                highlight=False,
            )

    def say(self, text: str) -> None:
        """A plain line."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def chatter_to(log: Path) -> Iterator[TextIO]:
    """Sends everything written to file descriptors 1 and 2 (Ray's C++ parts, too) to ``log``; yields the real stderr."""
    log.parent.mkdir(parents=True, exist_ok=True)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    saved = [os.dup(1), os.dup(2)]
    terminal = os.fdopen(os.dup(2), "w", buffering=1, errors="replace")
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    try:
        yield terminal
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # the disk may be full
                stream.flush()
        os.dup2(saved[0], 1)
        os.dup2(saved[1], 2)
        for handle in (*saved, file):
            os.close(handle)
        terminal.close()
