"""``megu request add|list|run|show|verify|withdraw``: settings in, words out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from megu_dist.config.compose import Composed
from megu_dist.errors import UserError
from megu_dist.request.ledger import OPEN, Ledger

if TYPE_CHECKING:
    from rich.console import Console

    from megu_dist.request.run import Unlearn


def add(composed: Composed, folder: Path) -> None:
    """``megu request add``."""
    from megu_dist.request import ask, show

    request = ask.add(composed)
    print(f"{request.id}: recorded in {folder}: {show.short(request)}")
    print(f"carry it out with: megu request run request.dir={folder} …")


def listed(composed: Composed, folder: Path) -> None:
    """``megu request list``."""
    from megu_dist.request import show

    ledger = _there(folder)
    _console().print(show.listing(ledger))
    state = ledger.state()
    if state.model:
        print(f"latest model: {ledger.place(state.model['path'])}")


def run(composed: Composed, folder: Path, unlearn: Unlearn) -> None:
    """``megu request run``."""
    from megu_dist.request import words
    from megu_dist.request.run import run as carry_out

    records = carry_out(composed, unlearn, lambda text: print(text, file=sys.stderr, flush=True))
    for record in records:
        print(f"{record['request']}: {words.verdict(record)}")
    ledger = Ledger(folder)
    state = ledger.state()
    if not records:
        waiting = len(state.named(*OPEN))
        print("nothing to do: no request is pending" if not waiting else f"{waiting} requests came in meanwhile")
    if state.model:
        print(f"model:   {ledger.place(state.model['path'])}")
    if records:
        print(f"records: {ledger.records.path}; the last hash is {records[-1]['hash']} (note it down elsewhere)")


def shown(composed: Composed, folder: Path, name: str | None = None) -> None:
    """``megu request show ID``."""
    from megu_dist.request import show

    ledger, name = _there(folder), _named(name, "show")
    request, record = ledger.request(name), ledger.record_of(name)
    console = _console()
    for part in show.terminal(request, record):
        console.print(part, highlight=False)
    print(f"page: {show.page(ledger, request, record)}")


def verify(composed: Composed, folder: Path, head: str | None = None) -> None:
    """``megu request verify [HASH]``: the same as ``python verify_records.py LEDGER [HASH]``."""
    from megu_dist.request.verify_records import Ledger as Checked

    _there(folder)
    checked = Checked(folder, [head] if head else [])
    print("\n".join([*checked.notes, *([f"WRONG: {line}" for line in checked.bad] or ["nothing is wrong"])]))
    if checked.bad:
        print("compare with a backup; docs/deletion-records.md tells what each line means", file=sys.stderr)
        sys.exit(1)


def withdraw(composed: Composed, folder: Path, name: str | None = None) -> None:
    """``megu request withdraw ID``."""
    from megu_dist.request import ask

    name = _named(name, "withdraw")
    ask.withdraw(Ledger(folder), name)
    print(f"{name}: withdrawn; its lines stay in {folder / 'requests.jsonl'}")


def _there(folder: Path) -> Ledger:
    ledger = Ledger(folder)
    ledger.check_there()
    return ledger


def _named(name: str | None, verb: str) -> str:
    if not name:
        raise UserError(f"name the request: megu request {verb} ID (`megu request list` has the ids)")
    return name


def _console() -> Console:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160)
