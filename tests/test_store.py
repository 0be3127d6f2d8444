"""Stages are done once, never served stale, and survive a process that dies anywhere."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megu_dist.errors import UserError
from megu_dist.store import ArtefactStore, content_key, write_json, write_text


class Stage:
    """A stage with two outputs, which writes its input into them and counts its runs."""

    def __init__(self, folder: Path, resume: bool = True) -> None:
        self.folder, self.resume, self.runs = folder, resume, 0

    def __call__(self, value: Any) -> Any:
        def work(out: Path) -> dict[str, Any]:
            self.runs += 1
            (out / "model").mkdir()
            (out / "model" / "weights").write_text(str(value))
            (out / "log").write_text(str(value))
            return {"value": value}

        return ArtefactStore(self.folder, self.resume).stage("train", {"value": value}, ["model", "log"], work)

    def contents(self) -> list[str]:
        return [(self.folder / name).read_text() for name in ("model/weights", "log")]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path / "run")


def test_a_finished_stage_is_skipped(stage: Stage) -> None:
    first, second = stage(1), stage(1)
    assert stage.runs == 1
    assert (first.cached, second.cached) == (False, True)
    assert (second.key, second.seconds, second.outputs, second.info) == (
        first.key,
        first.seconds,
        first.outputs,
        {"value": 1},
    )


def test_a_changed_input_runs_again_and_the_old_result_returns(stage: Stage) -> None:
    stage(1)
    stage(2)
    assert stage.contents() == ["2", "2"]
    assert stage.runs == 2
    assert stage(1).cached
    assert stage.contents() == ["1", "1"]
    assert stage(2).cached
    assert stage.contents() == ["2", "2"]
    assert stage.runs == 2
    assert not list((stage.folder / ".tmp").iterdir())


@pytest.mark.parametrize("lost", ["model", "log"])
def test_a_lost_output_is_made_again(stage: Stage, lost: str) -> None:
    import shutil

    stage(1)
    path = stage.folder / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert not stage(1).cached
    assert stage.contents() == ["1", "1"]


def test_a_result_that_lost_an_output_before_it_was_set_aside_is_made_again(stage: Stage) -> None:
    stage(1)
    (stage.folder / "log").unlink()
    stage(2)
    assert not stage(1).cached
    assert stage.contents() == ["1", "1"]


def test_resume_false_runs_everything(stage: Stage) -> None:
    stage(1)
    stage.resume = False
    assert not stage(1).cached
    assert stage.runs == 2
    assert stage.contents() == ["1", "1"]


def test_an_output_that_was_not_written_is_an_error(stage: Stage) -> None:
    with pytest.raises(RuntimeError, match=r"did not write \['report'\]"):
        ArtefactStore(stage.folder).stage("report", {}, ["report"], lambda out: None)
    assert ArtefactStore(stage.folder).read("report") is None


def test_a_failed_run_leaves_the_earlier_result(stage: Stage) -> None:
    stage(1)

    def fail(out: Path) -> None:
        (out / "log").write_text("half")
        raise ValueError("worker lost")

    with pytest.raises(ValueError, match="worker lost"):
        ArtefactStore(stage.folder).stage("train", {"value": 2}, ["model", "log"], fail)
    assert stage.contents() == ["1", "1"]
    assert stage(1).cached
    with ArtefactStore(stage.folder).locked():
        assert not list((stage.folder / ".tmp").iterdir())


def crash_at(monkeypatch: pytest.MonkeyPatch, number: int) -> Callable[[], None]:
    """The process dies instead of its rename ``number`` (records are replaced by rename, too)."""
    count = 0

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def rename(self: Path, target: Path) -> Any:
            nonlocal count
            count += 1
            if count == number:
                raise KeyboardInterrupt
            return real(self, target)

        return rename

    for name in ("rename", "replace"):
        monkeypatch.setattr(Path, name, dying(getattr(Path, name)))
    return monkeypatch.undo


@pytest.mark.parametrize("then", [1, 2, 3])
@pytest.mark.parametrize("number", range(1, 8))
def test_death_between_renames_of_a_new_result(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, number: int, then: int
) -> None:
    """Result 1 is there, 2 is put into place and the process dies; any of the three is right when asked for next."""
    stage(1)
    undo = crash_at(monkeypatch, number)
    with contextlib.suppress(KeyboardInterrupt):
        stage(2)
    undo()
    for value in (then, 1, 2, then):
        stage(value)
        assert stage.contents() == [str(value)] * 2


@pytest.mark.parametrize("then", [1, 2, 3])
@pytest.mark.parametrize("number", range(1, 8))
def test_death_between_renames_of_a_returning_result(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, number: int, then: int
) -> None:
    stage(1)
    stage(2)
    undo = crash_at(monkeypatch, number)
    with contextlib.suppress(KeyboardInterrupt):
        stage(1)
    undo()
    for value in (then, 1, 2, then):
        stage(value)
        assert stage.contents() == [str(value)] * 2


def test_one_process_at_a_time(stage: Stage) -> None:
    store = ArtefactStore(stage.folder)
    code = (
        "import sys; from pathlib import Path; from megu_dist.store import ArtefactStore\n"
        "with ArtefactStore(Path(sys.argv[1])).locked():\n  print('locked', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(stage.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    try:
        assert other.stdout.readline().strip() == "locked"
        with pytest.raises(UserError, match=r"in use by another megu process.*run\.name"), store.locked():
            pass
    finally:
        other.kill()  # the lock of a dead process is free at once
        other.wait()
        other.stdout.close()
    with store.locked():
        pass


def test_keys_follow_content_not_order() -> None:
    assert content_key({"a": 1, "b": [1, 2]}) == content_key({"b": [1, 2], "a": 1})
    assert content_key({"a": 1}) != content_key({"a": 2})
    assert content_key({"a": [1, 2]}) != content_key({"a": [2, 1]})


def test_files_are_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": [1]})
    assert json.loads(path.read_text()) == {"a": [1]}
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\udc00")
    assert json.loads(path.read_text()) == {"a": [1]}
