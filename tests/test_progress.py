"""Progress in plain lines, and everybody else's output in the log."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megu_dist import progress
from megu_dist.progress import Reporter, chatter_to


def test_plain_lines_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    out = io.StringIO()
    reporter = Reporter(out)
    with reporter.stage("perturb", 4000, "images"):
        reporter.update(1000)
        reporter.update(4000)
    reporter.skipped("split")
    reporter.say("[not markup] " + "x" * 300)
    lines = out.getvalue().splitlines()
    assert lines[0] == "perturb: started, 4,000 images"
    assert lines[1].startswith("perturb: 1,000/4,000 images, ")
    assert lines[1].endswith("s left")
    assert lines[-3].startswith("perturb: 4,000 images in ")
    assert lines[-2] == "split: already done"
    assert lines[-1] == "[not markup] " + "x" * 300
    assert "\x1b" not in out.getvalue()


def test_lines_are_seconds_apart() -> None:
    out = io.StringIO()
    reporter = Reporter(out)
    with reporter.stage("split", 100, "rows"):
        for done in range(100):
            reporter.update(done)
    assert len(out.getvalue().splitlines()) == 2


def test_a_stage_of_unknown_length() -> None:
    out = io.StringIO()
    with Reporter(out).stage("oracle", 0, "ratings"):
        pass
    assert out.getvalue().startswith("oracle: started\n")


def test_chatter_goes_to_the_log_and_comes_back(tmp_path: Path) -> None:
    """At the level of file descriptors, where Ray's C++ parts and child processes write."""
    log = tmp_path / "run" / "log.txt"
    code = (
        "import os, subprocess, sys; from pathlib import Path; from megu_dist.progress import chatter_to\n"
        "print('before')\n"
        "try:\n"
        "  with chatter_to(Path(sys.argv[1])) as terminal:\n"
        "    print('python'); print('error', file=sys.stderr)\n"
        "    os.write(1, b'fd one\\n'); os.write(2, b'fd two\\n')\n"
        "    subprocess.run(['echo', 'child'])\n"
        "    print('shown', file=terminal)\n"
        "    raise ValueError\n"
        "except ValueError: pass\n"
        "print('after'); os.write(2, b'after too\\n')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(log)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["before", "after"]
    assert done.stderr.splitlines() == ["shown", "after too"]
    assert set(log.read_text().splitlines()) == {"python", "error", "fd one", "fd two", "child"}


def test_the_log_is_continued_and_no_descriptor_is_lost(tmp_path: Path) -> None:
    def opened() -> int:
        return len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0

    before = opened()
    for word in (b"first\n", b"second\n"):
        with chatter_to(tmp_path / "log.txt"):
            os.write(1, word)
    assert (tmp_path / "log.txt").read_bytes() == b"first\nsecond\n"
    assert opened() == before
