"""``megu request list`` and ``show``: tables on the terminal, and a page that can be handed to whoever asked."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megu_dist.request import durable, words
from megu_dist.request.chain import Entry
from megu_dist.request.ledger import Ledger, Request

if TYPE_CHECKING:
    from rich.table import Table

PICTURES = {  # of a batch's run; none of them shows an image of the data
    "per_class_accuracy": "Bar chart of test accuracy per class, before and after; what was deleted is shaded",
    "destinations": "Bar chart of what deleted images are taken for now",
}


@dataclass(frozen=True)
class Picture:
    """A figure on the page."""

    alt: str
    data: str  # base64 of the PNG


def listing(ledger: Ledger) -> Table:
    """A row per request."""
    from rich.table import Table
    from rich.text import Text

    table = Table("request", "state", "since", "asked for", "batch", "record", box=None)
    records = {entry["request"]: entry["hash"][:12] for entry in ledger.records.read()}
    for request in ledger.state().requests.values():
        cells = (request.state, request.finished or request.time, short(request), request.batch or "")
        table.add_row(request.id, *(Text(cell) for cell in cells), records.get(request.id, ""))
    return table


def short(request: Request) -> str:
    """What a request names, and how many training images that were."""
    names = ", ".join(request.classes)
    images = f"{request.images:,} training image" + ("s" if request.images != 1 else "")
    return f"{names} ({images})" if names else images


def asked_facts(request: Request) -> list[tuple[str, str]]:
    """The request itself."""
    facts = [("request", request.id), ("recorded", request.time), ("names", short(request)), ("state", request.state)]
    if request.ids_sha256:
        facts.append(("list of image ids, SHA-256", request.ids_sha256))
    return [*facts, ("line of the journal, SHA-256", request.sha256)]


def done_facts(record: Entry) -> list[tuple[str, str]]:
    """What the unlearning was."""
    data, others = record["data"], record["batch_requests"] - 1
    together = f", together with {others} other request" + ("s" if others > 1 else "") if others else ""
    facts = [
        ("method", record["method"] + together),
        ("finished", record["time"]),
        ("training images", f"{data['train']:,}: {data['forget']:,} to forget, {data['retain']:,} retained, "
                            f"{data['already']:,} deleted earlier"),
        ("seconds", f"{record['seconds'].get('total', 0):,.0f}"),
        ("tools", ", ".join(f"{name} {value}" for name, value in record["tools"].items())),
    ]  # fmt: skip
    if record["oracle"].get("name"):
        stand_in = record["oracle"].get("stand_in")
        facts.insert(1, ("oracle", record["oracle"]["name"] + (f" ({stand_in})" if stand_in else "")))
    return facts


def hashes(record: Entry) -> list[tuple[str, str]]:
    """What can be computed again."""
    after = record["model_after"]
    found = [
        ("this record", record["hash"]),
        ("the record before it", record["previous"]),
        ("the request's line", record["request_sha256"]),
        ("data manifest", record["data"]["manifest_sha256"]),
        ("settings", record["settings_sha256"]),
        ("model before", record["model_before"]["sha256"]),
        ("model after", after["sha256"]),
        *((f"model after: {name}", value) for name, value in after["files"].items()),
        *((f"{name.replace('_', ' ')} model", value) for name, value in record["references"].items()),
    ]
    return found


def page(ledger: Ledger, request: Request, record: Entry | None) -> Path:
    """Writes ``pages/<id>.html``, one file without scripts that needs no other."""
    from megu_dist.report.render import render_page

    values: dict[str, Any] = {"request": request, "record": record, "asked": asked_facts(request), "models": []}
    if record is not None:
        values |= {
            "verdict": words.verdict(record),
            "failed": bool(record["classes"]) and record["measured"]["after"].get("acc_test", 0) > words.NEAR,
            "done": done_facts(record),
            "models": list(words.MODELS.values()),
            "rows": words.rows(record),
            "retrained": "retrained" in record["metrics"],
            "u_lira": "u_lira_auc" in record["metrics"].get("versus_retrained", {}),
            "readings": words.readings(record),
            "limits": words.limits(record),
            "pictures": _pictures(ledger.run_folder(record["batch"]) / "figures"),
            "hashes": hashes(record),
            "settings": json.dumps(record["settings"], indent=1),
        }
    template = files("megu_dist.request").joinpath("page.html.j2").read_text(encoding="utf-8")
    target = ledger.folder / "pages" / f"{request.id}.html"
    durable.write(target, render_page(template, **values))
    return target


def _pictures(folder: Path) -> list[Picture]:
    paths = {folder / f"{name}.png": alt for name, alt in PICTURES.items()}
    return [Picture(alt, base64.b64encode(p.read_bytes()).decode()) for p, alt in paths.items() if p.is_file()]


def terminal(request: Request, record: Entry | None) -> list[Any]:
    """What is printed of a request."""
    from rich.table import Table
    from rich.text import Text

    shown: list[Any] = []
    facts = Table(box=None, show_header=False)
    for name, value in asked_facts(request):
        facts.add_row(name, Text(value))
    shown.append(facts)
    if request.error:
        shown.append(Text(f"the last attempt failed: {request.error}"))
    if record is None:
        return shown
    table = Table("measure", title=Text(words.verdict(record)), title_justify="left")
    for name in words.MODELS.values():
        table.add_column(name, justify="right")
    for row in words.rows(record):
        table.add_row(Text(row.title), *row.cells)
    lines = [*words.readings(record), "It does not prove:", *(f"- {line}" for line in words.limits(record))]
    return [*shown, table, *(Text(line) for line in lines)]
