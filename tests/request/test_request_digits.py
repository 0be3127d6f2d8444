"""Requests on the digits, with the real unlearning: two in one run, then one more."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from megu_dist.data.base import Source
from megu_dist.request.chain import Chain
from megu_dist.request.ledger import Ledger
from megu_dist.request.record import model_hash

Run = Callable[[list[str]], Any]
TUNING = ["train.epochs=3", "train.lr=0.02", "train.batch_size=64", "train.precision=fp32", "method.lambda_forget=1",
          "engine=ddp"]  # fmt: skip
IMAGES = 5


@pytest.fixture(scope="module")
def ledger(
    digits: Source, digits_words: list[str], digits_model: Path, digits_retrained: Path, run_small: Run,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:  # fmt: skip
    """The ledger after ``three`` and five images of ``zero`` were deleted in one run, and ``eight`` after them."""
    folder = tmp_path_factory.mktemp("requests") / "ledger"
    labels = np.concatenate([digits.index(piece)["label"].to_numpy() for piece in digits.pieces("train")])
    ids = folder.parent / "ids.txt"
    ids.write_text("".join(f"train/{row:08d}\n" for row in np.flatnonzero(labels == 0)[:IMAGES]))
    data = [*digits_words, f"request.dir={folder}"]
    run = ["request", "run", *data, *TUNING, f"model.path={digits_model}"]
    for words in (
        ["request", "add", *data, "forget.classes=[three]"],
        ["request", "add", *data, f"forget.ids_file={ids}"],
        [*run, f"evaluate.retrained={digits_retrained}"],
        ["request", "add", *data, "forget.classes=[eight]"],
        run,
    ):
        done = run_small(words)
        assert done.code == 0, done.output
    assert "split: started" in done.output
    assert str(folder / "batches" / "b0003" / "model") in done.output
    return folder


def records(ledger: Path) -> dict[str, Any]:
    return {entry["request"]: entry for entry in Chain(ledger / "records.jsonl").read()}


def test_each_request_has_a_record_of_its_own(ledger: Path, digits_model: Path) -> None:
    images, one, other = records(ledger).values()
    assert [entry["request"] for entry in (images, one, other)] == ["r0002", "r0001", "r0003"]  # images first
    assert (images["images"], one["classes"], other["classes"]) == (IMAGES, ["three"], ["eight"])
    before = model_hash(digits_model)["sha256"]
    for record in (images, one, other):
        assert record["model_before"]["sha256"] == before
        before = record["model_after"]["sha256"]
        data = record["data"]
        assert data["forget"] + data["retain"] + data["already"] == data["train"]
        assert record["settings"]["train"]["stop"] == ("calibrated" if record is images else "fixed")
    assert [(r["data"]["forget"], r["data"]["already"]) for r in (images, one)] == [(IMAGES, 0), (146, IMAGES)]
    assert images["measured"]["after"]["train_images"] == IMAGES
    assert "acc_test" not in images["measured"]["after"]
    assert one["measured"]["before"]["acc_test"] > 0.8
    assert one["measured"]["after"]["acc_test"] < 0.1
    for record in (one, other):
        assert {"probe_forget_acc", "relearn_epochs", "mia"} <= record["metrics"]["after"].keys()
    assert one["metrics"]["retrained"]["acc_forget_test"] == 0
    assert "tow" in one["metrics"]["versus_retrained"]
    assert one["references"].keys() == {"retrained"}
    assert not {"retrained"} & (images["metrics"].keys() | other["metrics"].keys())  # trained without `three`


def test_what_was_deleted_stays_deleted(ledger: Path) -> None:
    after = records(ledger)["r0003"]["metrics"]["after"]
    assert after["acc_forget_test"] < 0.1
    assert after["acc_already_test"] < 0.1  # `three`, of which this batch saw nothing
    assert after["acc_already_train"] < 0.1
    assert after["acc_retain_test"] > 0.7


def test_a_batch_uses_nothing_of_those_before(ledger: Path, digits: Source) -> None:
    folder = ledger / "batches" / "b0003"
    gone = pq.read_table(folder / "split" / "already.parquet")
    forget = pq.read_table(folder / "split" / "forget.parquet")
    assert len(gone) == 146 + IMAGES
    assert set(gone["label"].to_pylist()) == {0, 3}
    assert set(forget["label"].to_pylist()) == {8}
    transition = json.loads((folder / "transition.json").read_text())
    assert transition["transition"][0][3] == 0
    assert transition["transition"][0][5] > 0
    predictions = pq.read_table(folder / "predictions" / "unlearned.parquet").to_pandas()
    parts = predictions.groupby("part")
    assert set(parts.groups) == {
        "retain_train",
        "forget_train",
        "retain_test",
        "forget_test",
        "already_train",
        "already_test",
    }
    retained = predictions[predictions["part"].isin(["retain_train", "retain_test"])]
    assert set(retained["label"]) == set(range(10)) - {3, 8}
    assert set(parts.get_group("already_test")["label"]) == {3}
    asked = (ledger / "ids" / "r0002.txt").read_text().splitlines()[1:]
    assert not set(asked) & set(predictions["id"])
    record = json.loads((folder / ".stages" / "finetune.json").read_text())
    assert record["info"]["steps"] == 3 * -(-(digits.num_rows("train") - len(gone)) // 64)


def test_no_image_of_what_was_deleted_is_kept(ledger: Path) -> None:
    assert not list(ledger.glob("batches/*/perturbed"))
    assert not list(ledger.glob("batches/*/checkpoints"))
    assert not list(ledger.glob("batches/*/figures/perturbed.png"))
    assert "<h3>Perturbed images</h3>" not in (ledger / "batches" / "b0001" / "report.html").read_text()


def test_list_show_and_verify(ledger: Path, run_small: Run) -> None:
    where = f"request.dir={ledger}"
    done = run_small(["request", "list", where])
    assert done.code == 0
    assert done.output.count("finished") == 3
    done = run_small(["request", "show", "r0001", where])
    assert done.code == 0, done.output
    page = (ledger / "pages" / "r0001.html").read_text()
    told = ["Deletion request r0001", "class &#39;three&#39;", "What this does not prove", "no second one was given"]
    for text in (
        *told,
        "Linear probe",
        "Relearn epochs",
        "Membership inference",
        "not run",
        records(ledger)["r0001"]["hash"],
    ):
        assert text in page, text
    assert "<script" not in page
    assert page.count("data:image/png;base64,") == 2
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "train/0000" not in page
    assert "Deleted class 'three'" in done.output
    assert "It does not prove:" in done.output
    second = run_small(["request", "show", "r0003", where]).output
    assert "Accuracy, forgotten earlier, test" in second
    assert "Classes that earlier requests deleted stay forgotten." in second
    assert "no retrained model was given" in second
    done = run_small(["request", "verify", where])
    assert (done.code, "nothing is wrong" in done.output) == (0, True)


def test_verify_tells_of_tampering(ledger: Path, run_small: Run, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(ledger, tmp_path / "ledger"))
    text = (copy / "records.jsonl").read_text()
    (copy / "records.jsonl").write_text(text.replace('"method":"megu"', '"method":"moon"', 1))
    done = run_small(["request", "verify", f"request.dir={copy}"])
    assert done.code == 1
    assert "WRONG: records.jsonl, line 1: was changed" in done.output


def test_running_again_does_nothing(ledger: Path, run_small: Run, digits_words: list[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in ledger.rglob("*") if path.is_file() and path.name != ".running"}
    done = run_small(["request", "run", f"request.dir={ledger}", *digits_words])
    assert done.code == 0
    assert "nothing to do: no request is pending" in done.output
    after = {path: path.stat().st_mtime_ns for path in ledger.rglob("*") if path.is_file() and path.name != ".running"}
    assert {p: t for p, t in after.items() if p.name != ".lock"} == {
        p: t for p, t in before.items() if p.name != ".lock"
    }
    assert len(Ledger(ledger).state().batches) == 3
