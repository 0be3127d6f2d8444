"""``megu request add``: a request is checked against the training data and against all requests before it."""

from __future__ import annotations

import re
import secrets
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megu_dist.config.compose import Composed
from megu_dist.config.schema import ForgetSettings, MeguSettings
from megu_dist.config.validate import check, resolve_classes
from megu_dist.data.base import Source
from megu_dist.data.coarse import refuse_fine_names
from megu_dist.data.open import open_source
from megu_dist.data.split import Gone, read_ids
from megu_dist.errors import UserError, nearest
from megu_dist.request import durable
from megu_dist.request.chain import digest
from megu_dist.request.ledger import OPEN, Ledger, Request, State

ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
IDS = "ids"  # folder of the ledger
SHOWN = 5


@dataclass(frozen=True)
class Asked:
    """What a new request names."""

    classes: tuple[str, ...]
    ids: tuple[str, ...]
    file: str | None

    def where(self, name: str) -> str:
        """The key that names it."""
        return "forget.classes" if name in self.classes else f"forget.ids_file={self.file}"


@dataclass(frozen=True)
class Seen:
    """What one pass over the training data's ids and labels found."""

    label: dict[str, int]  # of each id asked for
    covered: int  # images that the request would forget
    left: int  # images that would be retained after this and every other request
    some: list[str]  # ids, to show how they look


def add(composed: Composed) -> Request:
    """Records a request. Raises :class:`UserError` that names what is unknown, named twice, or asked for before."""
    settings = composed.settings
    check(settings)
    if settings.request.id is not None and not ID.fullmatch(settings.request.id):
        raise UserError(f"request.id={settings.request.id}: use letters, digits, '.', '_' and '-', 64 at most")
    source = open_source(settings.data)
    asked = read(settings, source, composed.words)
    ledger = Ledger(settings.request.dir)
    with ledger.writing():
        ledger.journal.mend()
        state = ledger.state()
        name = new_id(settings.request.id, state)
        refuse_known(asked, ledger, state)
        covered = refuse_unknown(asked, source, ledger, state)
        return record(ledger, state, name, asked, covered, settings, source)


def read(settings: MeguSettings, source: Source, words: Sequence[str]) -> Asked:
    """What is asked for; classes by name."""
    forget = settings.forget
    scenario = forget.scenario
    if scenario == "class" and forget.ids_file:  # the default scenario: the file says that images are meant
        if any(word.lstrip("+").startswith("forget.classes=") for word in words):
            raise UserError("forget.classes and forget.ids_file: a request names one or the other; make two requests")
        scenario = "ids"
    if scenario in ("subclass", "random"):
        raise UserError(
            f"forget.scenario={scenario}: a deletion request names classes or images; give forget.classes=[…] or "
            "forget.ids_file=FILE, one id a line"
        )
    if scenario == "ids" and not forget.ids_file:
        raise UserError("forget.scenario=ids needs forget.ids_file=FILE with one image id per line")
    if forget.already_classes or forget.already_file:
        raise UserError("forget.already_classes and forget.already_file follow from the ledger: leave them out")
    classes = _classes(forget, source) if scenario == "class" else ()
    ids = _ids(str(forget.ids_file)) if scenario == "ids" else ()
    if not classes and not ids:
        raise UserError("the request names nothing: give forget.classes=[Shirt] or forget.ids_file=FILE")
    return Asked(classes, ids, forget.ids_file)


def _classes(forget: ForgetSettings, source: Source) -> tuple[str, ...]:
    if not forget.classes:
        return ()
    refuse_fine_names(forget.classes, source)
    labels = [resolve_classes([item], source.class_names)[0] for item in forget.classes]
    resolve_classes(forget.classes, source.class_names)  # all of them at once
    names = [source.class_names[label] for label in labels]
    if twice := _twice(names):
        raise UserError(f"forget.classes: {_listed(twice)} {_are(twice)} named twice in one request; name each once")
    return tuple(sorted(names))


def _ids(path: str) -> tuple[str, ...]:
    if not Path(path).expanduser().is_file():
        raise UserError(f"forget.ids_file={path}: no such file; give a text file with one image id per line")
    ids = read_ids(path)
    if twice := _twice(ids):
        raise UserError(
            f"forget.ids_file={path}: {_listed(twice)} {_are(twice)} named twice in one request; name each once"
        )
    return tuple(sorted(ids))


def refuse_known(asked: Asked, ledger: Ledger, state: State) -> None:
    """What earlier requests name."""
    classes, ids = set(asked.classes), set(asked.ids)
    for request in state.named(*OPEN, "finished"):
        before = ids_of(ledger, request)
        if request.state in OPEN and classes == set(request.classes) and ids == before:
            raise UserError(
                f"this is request {request.id}, which is {request.state} since {request.time}: nothing added; "
                "see `megu request show`"
            )
        if again := sorted(classes & set(request.classes)) or sorted(ids & before):
            told = "deleted" if request.state == "finished" else "asked for"
            raise UserError(
                f"{asked.where(again[0])}: {_listed(again)} {_are(again)} {told} already by request {request.id} "
                f"({request.state}); nothing was added: leave it out"
            )


def refuse_unknown(asked: Asked, source: Source, ledger: Ledger, state: State) -> int:
    """What the training data do not hold, or hold under a class that is asked for; how many images are covered."""
    others = state.named(*OPEN, "finished")
    owner = {name: request for request in others for name in request.classes}
    gone = deleted(others, ledger, source)
    seen = look(source, asked, gone)
    if missing := sorted(set(asked.ids) - seen.label.keys()):
        raise UserError(
            f"forget.ids_file={asked.file}: {_listed(missing)} {_are(missing)} not in the training data; "
            f"{nearest(missing[0], seen.some)}"
        )
    for name, label in seen.label.items():
        of = source.class_names[label]
        if of in owner:
            raise UserError(
                f"forget.ids_file={asked.file}: {name!r} is of class {of!r}, which request {owner[of].id} "
                f"({owner[of].state}) covers; nothing was added: leave it out"
            )
    if seen.covered == 0:
        raise UserError(
            f"the training data hold no image of {_listed(list(asked.classes))}; check forget.classes and data.path"
        )
    kept = [name for name in source.class_names if name not in owner and name not in asked.classes]
    if seen.left == 0 or len(kept) < 2:
        raise UserError(
            f"the request would leave {seen.left:,} training images of {len(kept)} classes: too few to retain"
        )
    return seen.covered


def look(source: Source, asked: Asked, gone: Gone) -> Seen:
    """Reads ids and labels of the training data piece by piece; no image, and no more at a time than a piece."""
    ids = set(asked.ids)
    wanted = Gone(tuple(source.class_names.index(name) for name in asked.classes), frozenset(ids))
    label: dict[str, int] = {}
    covered = left = 0
    some: list[str] = []
    for piece in source.pieces("train"):
        index = source.index(piece)
        some = some or index["id"].to_pylist()[:1000]
        mine, before = wanted(index), gone(index)
        covered += int((mine & ~before).sum())
        left += int((~mine & ~before).sum())
        names = index["id"].filter(np.asarray(mine)).to_pylist()
        labels = index["label"].to_numpy()[mine].tolist()
        label |= {name: of for name, of in zip(names, labels, strict=True) if name in ids}
    return Seen(label, covered, left, some)


def deleted(requests: Iterable[Request], ledger: Ledger, source: Source) -> Gone:
    """What the requests cover: labels and ids. Classes that the data no longer have are passed over."""
    known = source.class_names
    labels = {known.index(name) for request in requests for name in request.classes if name in known}
    ids = frozenset[str]().union(*(ids_of(ledger, request) for request in requests))
    return Gone(tuple(sorted(labels)), ids)


def ids_of(ledger: Ledger, request: Request) -> set[str]:
    """The image ids of a request, as its file has them. Raises :class:`UserError` for a file that was changed."""
    if request.ids_file is None:
        return set()
    path = ledger.place(request.ids_file)
    if not path.is_file() or digest(path.read_bytes()) != request.ids_sha256:
        raise UserError(
            f"{path} is missing or was changed: put the file of request {request.id} back from a backup; its SHA-256 is "
            f"{request.ids_sha256}"
        )
    return set(read_ids(str(path)))


def new_id(given: str | None, state: State) -> str:
    """The id of a new request: as given, or the next free number."""
    if given is None:
        numbers = (f"r{number:04d}" for number in range(len(state.requests) + 1, 2 * len(state.requests) + 2))
        return next(name for name in numbers if name not in state.requests)
    if given in state.requests:
        raise UserError(
            f"request.id={given}: there is such a request already ({state.requests[given].state}); choose another id"
        )
    return given


def record(
    ledger: Ledger, state: State, name: str, asked: Asked, covered: int, settings: MeguSettings, source: Source
) -> Request:
    """Writes the file of ids, then the event: a crash between the two leaves a file that nothing refers to."""
    known = {request.ids_file for request in state.requests.values()}
    for left in (ledger.folder / IDS).glob("*"):
        if f"{IDS}/{left.name}" not in known:
            durable.remove(left)
    file = sha256 = None
    if asked.ids:
        # Salted: who knows how ids look could otherwise find a single one by trying.
        text = "\n".join([f"# salt {secrets.token_hex(16)}", *asked.ids]) + "\n"
        file, sha256 = f"{IDS}/{name}.txt", digest(text)
        durable.write(ledger.folder / file, text)
    event = ledger.add(
        "added",
        request=name,
        classes=list(asked.classes),
        images=covered,
        ids_file=file,
        ids_sha256=sha256,
        data={"name": settings.data.name, "fingerprint": source.fingerprint()},
    )
    state.add(event)
    return state.requests[name]


def withdraw(ledger: Ledger, name: str) -> None:
    """Takes back a request that was not carried out; its lines stay."""
    ledger.check_there()
    with ledger.writing():
        ledger.journal.mend()
        request = ledger.request(name)
        if request.state not in ("pending", "failed"):
            raise UserError(
                f"request {name} is {request.state}: only pending or failed ones can be taken back; see `megu request list`"
            )
        ledger.add("withdrawn", request=name)


def _twice(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def _listed(names: Sequence[str]) -> str:
    more = f" … ({len(names):,} in all)" if len(names) > SHOWN else ""
    return ", ".join(repr(name) for name in names[:SHOWN]) + more


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"
