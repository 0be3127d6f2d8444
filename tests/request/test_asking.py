"""``megu request add``, ``list``, ``withdraw`` and ``show`` of what is pending: what is taken, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ledger_worker import composed, pretend

from megu_dist.cli import main
from megu_dist.data.base import Source
from megu_dist.request import ask
from megu_dist.request.ledger import Ledger
from megu_dist.request.run import run as carry_out

Megu = Callable[..., tuple[int, str, str]]


@pytest.fixture
def megu(capfd: pytest.CaptureFixture[str], cache_dir: Path, tmp_path: Path) -> Megu:
    """Exit status, stdout and stderr of ``megu request WORDS`` on the ledger of this test."""

    def run(verb: str, *words: str) -> tuple[int, str, str]:
        data = ["data=digits", f"data.cache_dir={cache_dir}"] if verb == "add" else []
        with pytest.raises(SystemExit) as stop:
            main(["request", verb, f"request.dir={tmp_path / 'ledger'}", *data, *words])
        out = capfd.readouterr()
        assert "Traceback" not in out.err
        return int(stop.value.code or 0), out.out, out.err

    return run


@pytest.fixture
def ids(tmp_path: Path) -> Callable[..., str]:
    """``ids(…)``: the word for a file of these ids."""

    def write(*names: str) -> str:
        (tmp_path / "ids.txt").write_text("".join(f"{name}\n" for name in names))
        return f"forget.ids_file={tmp_path / 'ids.txt'}"

    return write


def labels(source: Source) -> np.ndarray:
    return np.concatenate([source.index(piece)["label"].to_numpy() for piece in source.pieces("train")])


def image_of(source: Source, label: int, nth: int = 0) -> str:
    return f"train/{np.flatnonzero(labels(source) == label)[nth]:08d}"


def finish(tmp_path: Path, model: Path, cache_dir: Path) -> None:
    words = ("data=digits", f"data.cache_dir={cache_dir}", f"request.dir={tmp_path / 'ledger'}", f"model.path={model}")
    carry_out(composed(*words), pretend, lambda text: None)


def test_a_request_is_recorded_with_its_state(megu: Megu, ids: Any, digits: Source, tmp_path: Path) -> None:
    code, out, _ = megu("add", "forget.classes=[three]")
    assert code == 0
    assert f"r0001: recorded in {tmp_path / 'ledger'}: three (146 training images)" in out
    one, two = image_of(digits, 0), image_of(digits, 1)
    assert megu("add", ids(two, one), "request.id=ticket-1")[0] == 0
    assert megu("add", "forget.classes=[5, six]")[0] == 0
    state = Ledger(tmp_path / "ledger").state()
    assert [(r.id, r.classes, r.state) for r in state.requests.values()] == [
        ("r0001", ("three",), "pending"),
        ("ticket-1", (), "pending"),
        ("r0003", ("five", "six"), "pending"),
    ]
    counts = np.bincount(labels(digits))
    assert [r.images for r in state.requests.values()] == [counts[3], 2, counts[5] + counts[6]]
    code, out, _ = megu("list")
    assert code == 0
    for words in ("ticket-1", "2 training images", "five, six", "pending"):
        assert words in out
    code, out, _ = megu("show", "ticket-1")
    page = (tmp_path / "ledger" / "pages" / "ticket-1.html").read_text()
    assert code == 0
    assert "There is no deletion record yet" in page
    assert one not in page + out
    assert megu("verify")[0] == 0


def test_an_experiments_classes_are_not_taken_for_a_request_by_ids(
    ids: Any, digits: Source, tmp_path: Path, cache_dir: Path
) -> None:
    """forget.classes of a file of settings is no word of the user's."""
    from dataclasses import replace

    asked = composed(
        "data=digits", f"data.cache_dir={cache_dir}", ids(image_of(digits, 1)), f"request.dir={tmp_path / 'l'}"
    )
    forget = replace(asked.settings.forget, classes=["eight"])
    request = ask.add(replace(asked, settings=replace(asked.settings, forget=forget)))
    assert (request.classes, request.images) == ((), 1)


def test_what_is_refused(megu: Megu, ids: Any, digits: Source, tmp_path: Path) -> None:
    def refused(*parts: str, words: list[str]) -> None:
        before = (tmp_path / "ledger" / "requests.jsonl").read_bytes()
        code, _, err = megu("add", *words)
        assert code == 2, err
        for part in parts:
            assert part in err
        assert (tmp_path / "ledger" / "requests.jsonl").read_bytes() == before

    one, two, three = image_of(digits, 0), image_of(digits, 1), image_of(digits, 3)
    assert megu("add", "forget.classes=[three]")[0] == 0
    assert megu("add", ids(one, two))[0] == 0
    refused("'thre'", "'three'", words=["forget.classes=[thre]"])
    refused("'eight' is named twice", words=["forget.classes=[eight, 8]"])
    refused("request r0001, which is pending", words=["forget.classes=[3]"])
    refused("forget.classes: 'three' is asked for already by request r0001", words=["forget.classes=[three, eight]"])
    refused(
        "'train/99999999' is not in the training data",
        "did you mean",
        words=[ids(image_of(digits, 8), "train/99999999")],
    )
    refused(f"{image_of(digits, 8)!r} is named twice", words=[ids(image_of(digits, 8), image_of(digits, 8))])
    refused("request r0002, which is pending", words=[ids(two, one)])
    refused(f"{two!r} is asked for already by request r0002 (pending)", words=[ids(two, image_of(digits, 8))])
    refused(f"{three!r} is of class 'three', which request r0001", words=[ids(three)])
    refused("make two requests", words=[ids(image_of(digits, 5)), "forget.classes=[five]"])
    refused("names no image", words=[ids("# nothing")])
    refused("no such file", words=["forget.ids_file=/nowhere"])
    refused("forget.classes=[Shirt]", words=[])
    refused("forget.scenario=random", words=["forget.scenario=random", "forget.fraction=0.1"])
    refused("already_classes", words=["forget.classes=[eight]", "forget.already_classes=[nine]"])
    refused("request.id=a b", words=["forget.classes=[eight]", "request.id='a b'"])
    refused("there is such a request already", words=["forget.classes=[eight]", "request.id=r0001"])
    refused("too few to retain", words=["forget.classes=[0,1,2,4,5,6,7,8]"])
    refused("unknown key", words=["request.dri=x"])


def test_what_was_deleted_is_refused_politely(
    megu: Megu, ids: Any, digits: Source, tmp_path: Path, untrained_model: Path, cache_dir: Path
) -> None:
    one = image_of(digits, 0)
    assert megu("add", "forget.classes=[three]")[0] == 0
    assert megu("add", ids(one))[0] == 0
    finish(tmp_path, untrained_model, cache_dir)
    for words, part in (
        (["forget.classes=[three]"], "forget.classes: 'three' is deleted already by request r0001 (finished)"),
        ([one], f"{one!r} is deleted already by request r0002 (finished)"),
        ([image_of(digits, 3)], "is of class 'three', which request r0001 (finished) covers"),
    ):
        code, _, err = megu("add", *(words if "=" in words[0] else [ids(*words)]))  # a file for each
        assert code == 2
        assert part in err
    assert megu("add", "forget.classes=[zero]")[0] == 0  # of which an image is gone already
    assert Ledger(tmp_path / "ledger").request("r0003").images == int((labels(digits) == 0).sum()) - 1


def test_a_request_can_be_withdrawn_until_it_is_carried_out(
    megu: Megu, tmp_path: Path, untrained_model: Path, cache_dir: Path
) -> None:
    megu("add", "forget.classes=[three]")
    assert megu("withdraw", "r0001")[0] == 0
    assert megu("withdraw")[0] == 2
    code, _, err = megu("withdraw", "r0001")
    assert (code, "only pending or failed ones" in err) == (2, True)
    megu("add", "forget.classes=[three]")  # may be asked for again
    finish(tmp_path, untrained_model, cache_dir)
    code, _, err = megu("withdraw", "r0002")
    assert (code, "request r0002 is finished" in err) == (2, True)
    code, _, err = megu("withdraw", "r002")
    assert (code, "'r0002'" in err) == (2, True)
    assert [r.state for r in Ledger(tmp_path / "ledger").state().requests.values()] == ["withdrawn", "finished"]
    assert megu("verify")[0] == 0


def test_a_failed_batch_is_tried_again_in_the_same_folder(
    megu: Megu, tmp_path: Path, untrained_model: Path, cache_dir: Path
) -> None:
    from megu_dist.errors import UserError

    words = (
        "data=digits",
        f"data.cache_dir={cache_dir}",
        f"request.dir={tmp_path / 'ledger'}",
        f"model.path={untrained_model}",
    )

    def fail(*_: Any) -> None:
        raise UserError("image 'x' is to be forgotten and cannot be read")

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    megu("add", "forget.classes=[three]")
    for _ in range(2):
        with pytest.raises(UserError):
            carry_out(composed(*words), fail, print)
    ledger = Ledger(tmp_path / "ledger")
    request = ledger.request("r0001")
    assert (request.state, request.batch, request.error) == (
        "failed",
        "b0001",
        "image 'x' is to be forgotten and cannot be read",
    )
    assert "cannot be read" in megu("show", "r0001")[1]
    megu("add", "forget.classes=[four]")
    with pytest.raises(KeyboardInterrupt):
        carry_out(composed(*words), interrupt, print)
    assert ledger.state().open_batch == "b0002"  # other requests, another folder; nothing says that it failed
    carry_out(composed(*words), pretend, print)
    assert [(r.state, r.batch) for r in ledger.state().requests.values()] == [("finished", "b0002")] * 2
    assert megu("verify")[0] == 0


def test_single_images_are_forgotten_until_they_look_unseen(
    megu: Megu, ids: Any, digits: Source, tmp_path: Path, untrained_model: Path, cache_dir: Path
) -> None:
    base = (f"data.cache_dir={cache_dir}", f"request.dir={tmp_path / 'ledger'}", f"model.path={untrained_model}")
    taken = []

    def look(composed: Any, folder: Path) -> None:
        taken.append(composed.settings.train.stop)
        pretend(composed, folder)

    words = ("data=digits", *base)
    megu("add", ids(image_of(digits, 0), image_of(digits, 1)))
    carry_out(composed(*words), look, print)
    megu("add", ids(image_of(digits, 0, 1)))
    carry_out(composed(*words, "train.stop=fixed"), look, print)
    megu("add", "forget.classes=[three]")
    carry_out(composed(*words), look, print)
    assert taken == ["calibrated", "fixed", "fixed"]


def test_a_run_starts_from_the_latest_model_only(
    megu: Megu, tmp_path: Path, untrained_model: Path, cache_dir: Path
) -> None:
    import shutil

    from megu_dist.errors import UserError

    data = ("data=digits", f"data.cache_dir={cache_dir}", f"request.dir={tmp_path / 'ledger'}")

    def run(*words: str) -> list[Any]:
        return carry_out(composed(*data, *words), pretend, lambda text: None)

    megu("add", "forget.classes=[three]")
    with pytest.raises(UserError, match=r"model\.path is not set"):
        run()
    assert Ledger(tmp_path / "ledger").request("r0001").state == "pending"  # nothing was started
    assert len(run(f"model.path={untrained_model}")) == 1
    assert run() == []
    megu("add", "forget.classes=[four]")
    other = shutil.copytree(untrained_model, tmp_path / "other")
    (other / "model.safetensors").write_text("other weights")
    with pytest.raises(UserError, match="is not the model of this ledger"):
        run(f"model.path={other}")
    (record,) = run(f"model.path={untrained_model}")  # the same command as before: the latest model, not the first
    assert record["model_before"]["path"] == "batches/b0001/model"
    megu("add", "forget.classes=[five]")
    weights = tmp_path / "ledger" / "batches" / "b0002" / "model" / "model.safetensors"
    weights.write_text("changed")
    with pytest.raises(UserError, match=r"the latest model of .* is missing or was changed"):
        run()
    config = json.loads((tmp_path / "ledger" / "batches" / "b0002" / "outcome.json").read_text())["shared"]["settings"]
    assert config["forget"]["already_classes"] == ["three"]
    assert config["report"]["images"] == 0
