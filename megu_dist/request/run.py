"""``megu request run``: all pending requests in one unlearning of the latest model, then a record of each.

Requests for images and requests for classes are two unlearnings, where both are pending: a class must end up unknown, an
image only as little known as one that was never seen, so they are trained until different points.

Between any two writes the process may die. What it had done is found in the journal and in the batch's folder, and the
next run goes on from there: the same requests, the same run folder, no stage twice, no record twice.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from omegaconf import OmegaConf

from megu_dist.config.compose import Composed
from megu_dist.config.schema import ForgetSettings
from megu_dist.config.validate import check, check_forget, check_method
from megu_dist.errors import UserError, find_user_error
from megu_dist.models.checkpoint import open_checkpoint
from megu_dist.request import durable
from megu_dist.request.ask import ids_of
from megu_dist.request.chain import Entry
from megu_dist.request.ledger import OPEN, Ledger, Request, State
from megu_dist.request.record import OUTCOME, append_records, model_hash, write_outcome

Unlearn = Callable[[Composed, Path], None]  # settings, run folder: `megu unlearn` without its last words
Say = Callable[[str], None]
UNSEEN = 0.1  # share of the test images that the calibrated stop compares with, where none is set
# What of a finished batch holds images, or weights that know them.
PURGED = ("perturbed", "checkpoints", ".previous", ".tmp")


def run(composed: Composed, unlearn: Unlearn, say: Say) -> list[Entry]:
    """Carries out what is pending when the lock is had; the records of all requests that it has finished."""
    ledger = Ledger(composed.settings.request.dir)
    ledger.check_there()
    records: list[Entry] = []
    with ledger.running(say):
        with ledger.writing():
            for chain in (ledger.journal, ledger.records):
                if lost := chain.mend():
                    say(f"{chain.path.name}: cut off {lost} bytes of a line that a crash left unfinished")
        for batch in _batches(ledger, composed, say):
            records += _carry_out(ledger, batch, composed, unlearn, say)
        for batch in ledger.state().batches:
            _purge(ledger, batch)
    return records


def _batches(ledger: Ledger, composed: Composed, say: Say) -> Iterator[str]:
    """The batch that a dead process has left, then those of what is pending: images before the classes they may be of."""
    if left := ledger.state().open_batch:
        say(f"batch {left} was started and not finished: going on with it")
        yield left
    for whole in (False, True):
        state = ledger.state()
        if pending := [one for one in state.named("pending", "failed") if bool(one.classes) is whole]:
            yield _start(ledger, state, pending, composed)


def _start(ledger: Ledger, state: State, pending: list[Request], composed: Composed) -> str:
    """Checks what can be checked, and writes down that the batch begins."""
    names = [request.id for request in pending]
    # A failed batch keeps its folder, and so its finished stages, as long as it is the same requests.
    again = next((batch for batch, of in state.batches.items() if of == names and batch == pending[0].batch), None)
    batch = again or f"b{len(state.batches) + 1:04d}"
    model = _model(ledger, state, composed)
    prepared = _settings(ledger, state, batch, pending, model["path"], composed)
    check(prepared.settings)
    check_forget(prepared.settings)
    check_method(prepared.settings)
    with ledger.writing():
        known = ledger.state().requests
        if any(known[name].state == "withdrawn" for name in names):
            raise UserError("a request was withdrawn just now; see `megu request list`, and run the same command again")
        ledger.add("started", batch=batch, requests=names, model=model)
    return batch


def _model(ledger: Ledger, state: State, composed: Composed) -> dict[str, str]:
    """Path and hash of the latest model, or of the one that the ledger begins with."""
    given = composed.settings.model.path
    if state.model is None:
        if not given:
            raise UserError("model.path is not set: give the trained model that the first deletion is to be made from")
        folder = open_checkpoint(given).folder
        return {"path": str(folder), "sha256": model_hash(folder)["sha256"]}
    latest = state.model
    folder = ledger.place(latest["path"])
    if not folder.is_dir() or model_hash(folder)["sha256"] != latest["sha256"]:
        raise UserError(
            f"{folder}, the latest model of {ledger.folder}, is missing or was changed: put it back from a backup; its "
            f"SHA-256 (see docs/deletion-records.md) is {latest['sha256']}"
        )
    if given:
        known = {latest["sha256"], (state.original or latest)["sha256"]}
        if model_hash(open_checkpoint(given).folder)["sha256"] not in known:
            raise UserError(
                f"model.path={given} is not the model of this ledger, whose latest is {folder}: leave model.path out, or "
                "begin a ledger for the other model (request.dir)"
            )
    return latest


def _settings(
    ledger: Ledger, state: State, batch: str, requests: list[Request], model: str, composed: Composed
) -> Composed:
    """The settings of the batch's unlearning; writes the ids that it forgets, and those that are gone already."""
    folder, done = ledger.run_folder(batch), state.named("finished")
    files = {}
    for name, of in (("ids", requests), ("already", done)):
        if ids := sorted(set[str]().union(*(ids_of(ledger, request) for request in of))):
            path, text = folder / f"{name}.txt", "\n".join(ids) + "\n"
            files[name] = str(path)
            if not path.is_file() or path.read_text() != text:
                durable.write(path, text)
    classes = [name for request in requests for name in request.classes]
    gone = [name for request in done for name in request.classes]
    s = composed.settings
    forget = ForgetSettings(
        scenario="class" if classes else "ids", classes=list(classes), ids_file=files.get("ids"),
        already_classes=list(gone), already_file=files.get("already"),
    )  # fmt: skip
    settings = replace(
        s,
        forget=forget,
        model=replace(s.model, path=str(ledger.place(model))),
        run=replace(s.run, dir=str(folder.parent), name=batch),
        report=replace(s.report, images=0),  # no picture of what is to be deleted
        exclude_forget=False,
        train=replace(s.train, stop=_stop(composed) if not classes else "fixed"),
    )
    if {one.id for one in state.named(*OPEN)} - {one.id for one in requests}:
        # More comes after this: a reference trained without all that is deleted is one of the last unlearning.
        settings = replace(settings, evaluate=replace(s.evaluate, retrained=None, retrained_second=None))
    if settings.train.stop == "calibrated" and not s.data.validation_fraction:
        settings = replace(settings, data=replace(s.data, validation_fraction=UNSEEN))
    return Composed(settings, OmegaConf.to_yaml(OmegaConf.structured(settings)), composed.words, composed.extra_dir)


def _stop(composed: Composed) -> str:
    """When single images are forgotten enough: as the user says, else when they are as unknown as unseen ones."""
    return composed.settings.train.stop if _said(composed, "train.stop") else "calibrated"


def _said(composed: Composed, key: str) -> bool:
    return any(word.lstrip("+").startswith(f"{key}=") for word in composed.words)


def _carry_out(ledger: Ledger, batch: str, composed: Composed, unlearn: Unlearn, say: Say) -> list[Entry]:
    """Everything between a batch's ``started`` and its ``finished``, as far as it is not done."""
    state = ledger.state()
    requests = [state.requests[name] for name in state.batches[batch]]
    folder = ledger.run_folder(batch)
    if not (folder / OUTCOME).is_file():
        assert state.model is not None
        say(
            f"batch {batch}: {len(requests)} request{'s' if len(requests) > 1 else ''} ({', '.join(state.batches[batch])})"
        )
        before = model_hash(ledger.place(state.model["path"]))
        if before["sha256"] != state.model["sha256"]:
            _model(ledger, state, composed)  # says so
        try:
            unlearn(_settings(ledger, state, batch, requests, state.model["path"], composed), folder)
        except Exception as error:
            _failed(ledger, batch, state, error)
            raise
        write_outcome(ledger, batch, requests, {"path": state.model["path"], **before})
    outcome = json.loads((folder / OUTCOME).read_text())
    with ledger.writing():
        records = append_records(ledger, outcome)
        after = outcome["shared"]["model_after"]
        ledger.add(
            "finished",
            batch=batch,
            requests=[request.id for request in requests],
            records=[record["hash"] for record in records],
            model={"path": after["path"], "sha256": after["sha256"]},
        )
    return records


def _failed(ledger: Ledger, batch: str, state: State, error: Exception) -> None:
    """Gives the requests back: the next run tries them again, with those that came since."""
    told = str(find_user_error(error) or f"{type(error).__name__}: {error}").strip().splitlines() or [""]
    with contextlib.suppress(OSError), ledger.writing():  # the disk may be full
        ledger.add("failed", batch=batch, requests=state.batches[batch], error=told[0][:500])


def _purge(ledger: Ledger, batch: str) -> None:
    """Removes what a finished batch's run has kept of the images that were to be deleted."""
    folder = ledger.run_folder(batch)
    if (folder / OUTCOME).is_file():
        for name in PURGED:
            durable.remove(folder / name)
