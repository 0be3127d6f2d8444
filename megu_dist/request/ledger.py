"""The ledger: a folder with the journal of requests, the records, the ids that were asked for, and the batches' runs.

What a request's state is follows from the events in the journal; nothing in it is ever rewritten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megu_dist.errors import UserError, nearest
from megu_dist.request.chain import Chain, Entry
from megu_dist.request.lock import held, now

SCHEMA = 1
OPEN = ("pending", "started", "failed")  # states of requests that are still to be carried out


@dataclass
class Request:
    """One deletion request, as the journal has it."""

    id: str
    classes: tuple[str, ...]
    images: int  # training images that it covered when it was recorded
    ids_file: str | None  # in the ledger's folder
    ids_sha256: str | None  # of that file: salt, and ids in order
    time: str
    sha256: str  # of its line in the journal
    state: str = "pending"  # pending | started | failed (and to be tried again) | finished | withdrawn
    batch: str | None = None
    error: str | None = None
    finished: str | None = None


@dataclass
class State:
    """What the journal adds up to."""

    requests: dict[str, Request] = field(default_factory=dict)
    batches: dict[str, list[str]] = field(default_factory=dict)  # batch → requests, in the order of their start
    open_batch: str | None = None  # started, and neither finished nor failed: its process died, or runs
    original: dict[str, str] | None = None  # path and sha256 of the model before the first batch
    model: dict[str, str] | None = None  # of the latest model
    head: str = ""  # hash of the last line

    def named(self, *states: str) -> list[Request]:
        """Requests in one of the states, oldest first."""
        return [request for request in self.requests.values() if request.state in states]

    def add(self, event: Entry) -> None:
        """Takes one line of the journal into account."""
        self.head = event["hash"]
        if event["event"] == "added":
            self.requests[event["request"]] = Request(
                event["request"], tuple(event["classes"]), event["images"], event["ids_file"], event["ids_sha256"],
                event["time"], event["hash"],
            )  # fmt: skip
        elif event["event"] == "withdrawn":
            self.requests[event["request"]].state = "withdrawn"
        else:
            self._batch(event)

    def _batch(self, event: Entry) -> None:
        name, state = event["batch"], event["event"]
        for request in (self.requests[one] for one in event["requests"]):
            request.state, request.batch, request.error = state, name, event.get("error")
            request.finished = event["time"] if state == "finished" else None
        self.batches[name] = event["requests"]
        self.open_batch = name if state == "started" else None
        if state == "finished":
            self.model = event["model"]
        elif not self.named("finished"):  # until a first batch is finished, another model may be given
            self.original = self.model = event["model"] if state == "started" else None


class Ledger:
    """The folder ``request.dir``."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser().resolve()
        self.journal, self.records = Chain(self.folder / "requests.jsonl"), Chain(self.folder / "records.jsonl")

    def check_there(self) -> None:
        """Raises :class:`UserError` for a folder without a journal."""
        if not self.journal.path.is_file():
            beside = sorted(path.parent.name for path in self.folder.parent.glob("*/requests.jsonl"))
            hint = f"; {nearest(self.folder.name, beside)}" if beside else ""
            raise UserError(f"request.dir={self.folder} holds no request: make the first with `megu request add`{hint}")

    def state(self) -> State:
        """What the journal adds up to now; takes no lock, and passes over a line that is being written."""
        state = State()
        for event in self.journal.read():
            state.add(event)
        return state

    def request(self, name: str) -> Request:
        """A request by its id. Raises :class:`UserError`."""
        known = self.state().requests
        if name not in known:
            raise UserError(f"there is no request {name!r} in {self.folder}; {nearest(name, known)}")
        return known[name]

    def record_of(self, name: str) -> Entry | None:
        """The deletion record of a request; None before it is finished."""
        return next((entry for entry in self.records.read() if entry["request"] == name), None)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Short: one process at a time reads the journal and adds to it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with held(self.folder / ".lock"):
            yield

    @contextmanager
    def running(self, say: Callable[[str], None]) -> Iterator[None]:
        """As long as an unlearning takes: one ``megu request run`` at a time. Requests can be added meanwhile."""
        with held(self.folder / ".running", say):
            yield

    def add(self, event: str, **facts: Any) -> Entry:
        """Adds an event to the journal; the lock must be held."""
        (added,) = self.journal.append([{"schema": SCHEMA, "event": event, "time": now(), **facts}])
        return added

    def run_folder(self, batch: str) -> Path:
        """Where a batch's unlearning has its artefacts."""
        return self.folder / "batches" / batch

    def place(self, path: str) -> Path:
        """A path as journal and records have it: relative to the ledger where it is inside."""
        return self.folder / path
