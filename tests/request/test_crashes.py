"""A ledger survives the end of its process at any moment, and two runs at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ledger_worker import CRASHED

from megu_dist.request.chain import Chain
from megu_dist.request.ledger import Ledger
from megu_dist.request.verify_records import Ledger as Checked

WORKER = Path(__file__).parent / "ledger_worker.py"


def command(*words: object) -> list[str]:
    return [sys.executable, str(WORKER), *map(str, words)]


def without_times(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What does not depend on when it was written, nor on salts."""
    changing = ("time", "hash", "previous", "number", "journal", "requested", "request_sha256", "ids_sha256", "settings",
                "settings_sha256", "records")  # fmt: skip
    return [{key: value for key, value in entry.items() if key not in changing} for entry in entries]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, untrained_model: Path, cache_dir: Path) -> tuple[Path, list[Any]]:
    folder = tmp_path_factory.mktemp("sweep")
    done = subprocess.run(
        command("sweep", folder, untrained_model, cache_dir), capture_output=True, text=True, timeout=580
    )
    assert done.returncode == 0, done.stderr
    return folder, [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.timeout(600)
def test_a_crash_between_any_two_writes_loses_nothing_and_does_nothing_twice(swept: tuple[Path, list[Any]]) -> None:
    folder, points = swept
    calm = Ledger(folder / "calm" / "ledger")
    expected = without_times(calm.records.read())
    assert [entry["request"] for entry in expected] == ["b", "a", "d", "c"]
    assert sum(point["first"] == CRASHED for point in points if not point["torn"]) == 57
    assert sum(point["first"] == CRASHED for point in points if point["torn"]) == 14
    for point in points:
        where = folder / f"{'torn' if point['torn'] else 'step'}-{point['point']}" / "ledger"
        assert point["first"] in (0, CRASHED), point
        assert point["second"] == 0, point
        ledger = Ledger(where)
        assert without_times(ledger.records.read()) == expected, point  # the same models, too
        state = ledger.state()
        assert [(r.id, r.state, r.batch) for r in state.requests.values()] == [
            ("a", "finished", "b0002"), ("b", "finished", "b0001"), ("d", "finished", "b0002"), ("c", "finished", "b0003")
        ], point  # fmt: skip
        events = [(event["event"], event.get("batch")) for event in ledger.journal.read()]
        assert len(events) == len(set(events)) + 3, (point, events)  # four times "added", everything else once
        checked = Checked(where, [])
        assert not checked.bad, (point, checked.bad)
        assert not list(where.glob("batches/*/perturbed")), point
        assert sorted(path.name for path in (where / "ids").iterdir()) == ["b.txt"], point
        told = (where / "batches" / "unlearned.txt").read_text().splitlines()
        assert len({line.split(" ", 1)[0]: line for line in told}) == len(set(told)) == 3, (
            point
        )  # the same requests again


def test_a_run_waits_for_another_and_says_for_whom(tmp_path: Path, untrained_model: Path, cache_dir: Path) -> None:
    from megu_dist.config.compose import load
    from megu_dist.request import ask

    ask.add(
        load(["data=digits", f"data.cache_dir={cache_dir}", f"request.dir={tmp_path / 'ledger'}", "forget.classes=[3]"])
    )
    words = command("run", tmp_path, untrained_model, cache_dir, 2.0)
    first = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    while "unlearning" not in first.stdout.readline():
        pass
    second = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert first.wait(10) == 0
    assert "done 1" in first.stdout.read()
    assert second.returncode == 0, second.stderr
    assert f"waiting for process {first.pid} on " in second.stdout
    assert "done 0" in second.stdout
    assert (tmp_path / "ledger" / "batches" / "unlearned.txt").read_text().count("\n") == 1


def test_a_killed_run_holds_nothing_up(tmp_path: Path, untrained_model: Path, cache_dir: Path) -> None:
    from megu_dist.config.compose import load
    from megu_dist.request import ask

    data = ["data=digits", f"data.cache_dir={cache_dir}", f"request.dir={tmp_path / 'ledger'}"]
    ask.add(load([*data, "forget.classes=[3]"]))
    first = subprocess.Popen(
        command("run", tmp_path, untrained_model, cache_dir, 600), stdout=subprocess.PIPE, text=True
    )
    assert first.stdout is not None
    while "unlearning" not in first.stdout.readline():
        pass
    ask.add(load([*data, "forget.classes=[5]"]))  # requests come in while a run is at work
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    start = time.monotonic()
    second = subprocess.run(
        command("run", tmp_path, untrained_model, cache_dir, 0), capture_output=True, text=True, timeout=60
    )
    assert second.returncode == 0, second.stderr
    assert time.monotonic() - start < 30
    assert "waiting" not in second.stdout
    assert "batch b0001 was started and not finished: going on with it" in second.stdout
    assert "done 2" in second.stdout
    assert [event["requests"] for event in Chain(tmp_path / "ledger" / "requests.jsonl").read() if "requests" in event] == [
        ["r0001"], ["r0001"], ["r0002"], ["r0002"]
    ]  # fmt: skip
