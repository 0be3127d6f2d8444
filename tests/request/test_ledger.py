"""The journal, its chain, and the verifier; nothing here starts Ray."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from ledger_worker import client

from megu_dist.errors import UserError
from megu_dist.request import lock, verify_records
from megu_dist.request.chain import Chain, line_of
from megu_dist.request.ledger import Ledger
from megu_dist.request.record import model_hash


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, untrained_model: Path, cache_dir: Path) -> Path:
    """A ledger with four requests in three batches."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        client(folder, str(untrained_model), str(cache_dir))
    return folder / "ledger"


@pytest.fixture
def ledger(finished: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(finished, tmp_path / "ledger"))


def test_each_line_can_be_checked_with_sha256sum_alone(finished: Path) -> None:
    for name in ("requests.jsonl", "records.jsonl"):
        previous = "0" * 64
        for line in (finished / name).read_text().splitlines():
            body = re.sub(r',"hash":"[0-9a-f]{64}"}$', "}", line)
            entry = json.loads(line)
            assert hashlib.sha256(body.encode()).hexdigest() == entry["hash"]
            assert entry["previous"] == previous
            previous = entry["hash"]
    command = "sha256sum *.json *.safetensors | LC_ALL=C sort -k2 | sha256sum"
    folder = finished / "batches" / "b0003" / "model"
    done = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == model_hash(folder)["sha256"]


def test_the_verifier_needs_the_standard_library_alone(finished: Path) -> None:
    script = Path(verify_records.__file__)
    assert len(script.read_text().splitlines()) < 100
    head = Chain(finished / "records.jsonl").read()[0]["hash"]
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(script), str(finished), head], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "nothing is wrong" in done.stdout
    assert "still knows what was deleted later" in done.stdout  # the models before the last
    missing = subprocess.run([sys.executable, "-I", "-S", str(script), str(finished), "0" * 64], capture_output=True)
    assert missing.returncode == 1
    assert subprocess.run([sys.executable, str(script)], capture_output=True).returncode == 1


def edit(name: str, line: int, old: str, new: str) -> Callable[[Path], None]:
    """Changes one line, and leaves its hash as it was."""

    def spoil(ledger: Path) -> None:
        lines = (ledger / name).read_text().splitlines(keepends=True)
        assert old in lines[line]
        lines[line] = lines[line].replace(old, new, 1)
        (ledger / name).write_text("".join(lines))

    return spoil


def drop(name: str, line: int) -> Callable[[Path], None]:
    def spoil(ledger: Path) -> None:
        lines = (ledger / name).read_text().splitlines(keepends=True)
        del lines[line]
        (ledger / name).write_text("".join(lines))

    return spoil


def rewrite(name: str, line: int, **changes: object) -> Callable[[Path], None]:
    """Changes one line and computes all hashes anew, as somebody would who knows how they are made."""

    def spoil(ledger: Path) -> None:
        entries, previous, out = [json.loads(x) for x in (ledger / name).read_text().splitlines()], "0" * 64, ""
        entries[line] |= changes
        for entry in entries:
            text = line_of({k: v for k, v in entry.items() if k != "hash"} | {"previous": previous})
            out, previous = out + text, json.loads(text)["hash"]
        (ledger / name).write_text(out)

    return spoil


def touch(path: str, text: str | None) -> Callable[[Path], None]:
    def spoil(ledger: Path) -> None:
        (ledger / path).unlink() if text is None else (ledger / path).write_text(text)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (edit("records.jsonl", 1, '"acc_retain_test":0.9', '"acc_retain_test":0.8'), "records.jsonl, line 2: was changed"),
        (edit("requests.jsonl", 0, "three", "eight"), "requests.jsonl, line 1: was changed"),
        (drop("records.jsonl", 0), "records.jsonl, line 1: does not follow"),
        (drop("requests.jsonl", 1), "requests.jsonl, line 2: does not follow"),
        (drop("records.jsonl", 3), "record of c: is not there"),  # the last line: nothing after it holds its hash
        (  # without the last line alone, a crash may have come between: a remark
            lambda ledger: [drop("requests.jsonl", line)(ledger) for line in (9, 8)],
            "record of c: the journal does not say that it is finished",
        ),
        (rewrite("records.jsonl", 1, classes=["four"]), "record of a: is not there"),
        (rewrite("requests.jsonl", 0, classes=["four"]), "record of a: classes does not fit"),
        (touch("ids/b.txt", "# salt\ntrain/00000001\n"), "b.txt: is missing or was changed"),
        (touch("ids/b.txt", None), "b.txt: is missing or was changed"),
        (touch("batches/b0003/model/model.safetensors", "others"), "model: was changed, or is another model"),
        (touch("batches/b0002/split/manifest.json", "{}"), "record of a: data does not fit"),
        (lambda ledger: shutil.rmtree(ledger / "batches/b0003/model"), "the latest model is not there"),
        (edit("records.jsonl", 0, "{", ""), "records.jsonl, line 1"),
        (lambda ledger: (ledger / "requests.jsonl").write_text(line_of({"schema": 1, "number": 0, "previous": "0" * 64})),
         "is not as documented"),
    ],
)  # fmt: skip
def test_tampering_shows(ledger: Path, spoil: Callable[[Path], None], told: str) -> None:
    assert verify_records.Ledger(ledger, []).bad == []
    spoil(ledger)
    assert any(told in line for line in verify_records.Ledger(ledger, []).bad), verify_records.Ledger(ledger, []).bad


def test_lines_taken_from_both_ends_show_to_who_noted_a_hash_down(ledger: Path) -> None:
    head = Chain(ledger / "records.jsonl").read()[-1]["hash"]
    drop("records.jsonl", 3)(ledger)
    for _ in range(3):
        drop("requests.jsonl", 7)(ledger)
    assert verify_records.Ledger(ledger, []).bad == []
    assert verify_records.Ledger(ledger, [head]).bad == [f"{head}: no line has this hash; lines are missing"]


def test_nothing_is_added_to_a_broken_journal(ledger: Path) -> None:
    edit("requests.jsonl", 0, "three", "eight")(ledger)
    before = (ledger / "requests.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"requests\.jsonl, line 1 was changed after it was written"):
        Ledger(ledger).add("withdrawn", request="a")
    assert (ledger / "requests.jsonl").read_bytes() == before


@pytest.mark.parametrize("rest", [b'{"schema":1,"ev', b"\0\0\0\0", b"x"])
def test_an_unfinished_last_line_is_passed_over_and_cut_off(ledger: Path, rest: bytes) -> None:
    journal = ledger / "requests.jsonl"
    before = journal.read_bytes()
    journal.write_bytes(before + rest)
    assert len(Chain(journal).read()) == 10
    checked = verify_records.Ledger(ledger, [])
    assert not checked.bad
    assert "10 lines, and an unfinished one" in checked.notes[0]
    assert journal.read_bytes() == before + rest  # looking changes nothing
    Chain(journal).append([{"schema": 1, "event": "added"}])
    assert journal.read_bytes().startswith(before + b'{"event":"added"')
    assert Chain(journal).mend() == 0


def test_a_lock_names_its_holder(tmp_path: Path) -> None:
    import os

    with lock.held(tmp_path / ".lock"):
        assert f"process {os.getpid()} on " in lock.holder(tmp_path / ".lock")
    with lock.held(tmp_path / ".lock", lambda text: pytest.fail(text)):  # free again, whatever is written in it
        pass


def test_no_id_and_no_image_is_in_a_record(finished: Path) -> None:
    text = (finished / "records.jsonl").read_text()
    assert "train/0000000" not in text
    record = Chain(finished / "records.jsonl").read()[0]
    assert record["images"] == 2
    assert record["ids_sha256"] == hashlib.sha256((finished / "ids" / "b.txt").read_bytes()).hexdigest()
    first, *ids = (finished / "ids" / "b.txt").read_text().splitlines()
    assert re.fullmatch("# salt [0-9a-f]{32}", first)
    assert ids == ["train/00000001", "train/00000002"]
    assert record["metrics"]["after"]["mia"] is None  # not a number: JSON has none
    assert not list(finished.glob("batches/*/perturbed"))
