"""What is written down of a finished batch, and the deletion record of each of its requests made from it.

``outcome.json`` in the batch's folder is written once, as a whole, when the unlearning is done: whatever happens after
that, the records follow from it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from megu_dist.request import durable
from megu_dist.request.ask import ids_of
from megu_dist.request.chain import Entry, canonical, digest, finite
from megu_dist.request.ledger import SCHEMA, Ledger, Request
from megu_dist.request.lock import now

OUTCOME = "outcome.json"
MODELS = {"before": "original", "after": "unlearned", "retrained": "retrained"}  # record → metrics.json
COMPARED = {"versus_retrained": "versus_retrained", "versus_floor": "versus_floor", "second_retrained": "floor_model"}


def model_hash(folder: Path) -> dict[str, Any]:
    """``files`` (name → SHA-256) of weights and configuration, and ``sha256`` of the list of both, which is what
    ``sha256sum *.json *.safetensors | LC_ALL=C sort -k2 | sha256sum`` prints in the folder."""
    files = {}
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")]):
        with path.open("rb") as file:
            import hashlib

            files[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return {"files": files, "sha256": digest("".join(f"{sha}  {name}\n" for name, sha in files.items()))}


def write_outcome(ledger: Ledger, batch: str, requests: list[Request], before: dict[str, str]) -> Entry:
    """Gathers the facts of a batch whose unlearning is done; the model is on the disk when they are."""
    folder = ledger.run_folder(batch)
    durable.sync_tree(folder / "model")
    metrics = json.loads((folder / "metrics.json").read_text())
    manifest = (folder / "split" / "manifest.json").read_bytes()
    counts = json.loads(manifest)
    settings = _settings(folder / "config.yaml")
    shared = {
        "schema": SCHEMA,
        "time": now(),
        "batch": batch,
        "batch_requests": len(requests),
        "method": metrics["method"],
        "model_before": before,
        "model_after": {"path": str((folder / "model").relative_to(ledger.folder)), **model_hash(folder / "model")},
        "data": {
            "manifest_sha256": digest(manifest),
            "fingerprint": counts["data_fingerprint"],
            **{name: counts[name] for name in ("train", "forget", "retain", "already", "already_classes")},
        },
        "settings": settings,
        "settings_sha256": digest(canonical(settings)),
        "metrics": finite(_metrics(metrics)),
        "references": references(settings),
        "oracle": finite(
            {k: v for k, v in (metrics.get("oracle") or {}).items() if k in ("name", "calls", "stand_in")}
        ),
        "seconds": finite(metrics["seconds"]),
        "tools": metrics["environment"],
    }
    outcome = {"shared": shared, "requests": [_asked(ledger, folder, request) for request in requests]}
    durable.write(folder / OUTCOME, json.dumps(outcome, indent=1, allow_nan=False) + "\n")
    return outcome


def _settings(path: Path) -> dict[str, Any]:
    """The resolved settings, without passwords and keys."""
    import yaml  # type: ignore[import-untyped,unused-ignore]

    from megu_dist.report.render import public_settings

    settings: dict[str, Any] = finite(yaml.safe_load(public_settings(path.read_text())))
    return settings


def references(settings: dict[str, Any]) -> dict[str, str]:
    """SHA-256 of the retrained models that the outcome was compared with."""
    from megu_dist.models.checkpoint import open_checkpoint

    named = {"retrained": "retrained", "second_retrained": "retrained_second"}
    paths = {name: settings["evaluate"][key] for name, key in named.items()}
    return {name: str(model_hash(open_checkpoint(path).folder)["sha256"]) for name, path in paths.items() if path}


def _metrics(metrics: dict[str, Any]) -> dict[str, Any]:
    found = {name: metrics["models"][key] for name, key in MODELS.items() if key in metrics["models"]}
    return found | {name: metrics[key] for name, key in COMPARED.items() if key in metrics}


def _asked(ledger: Ledger, folder: Path, request: Request) -> Entry:
    """What one request asked for, and accuracy on just that, before and after."""
    ids = ids_of(ledger, request)
    models = {path.stem: path for path in (folder / "predictions").glob("*.parquet")}
    measured = {name: _accuracy(models[key], request, ids) for name, key in MODELS.items() if key in models}
    return {
        "request": request.id,
        "request_sha256": request.sha256,
        "requested": request.time,
        "classes": list(request.classes),
        "images": len(ids),
        "ids_sha256": request.ids_sha256,
        "measured": finite(measured),
    }


def _accuracy(predictions: Path, request: Request, ids: set[str]) -> dict[str, Any]:
    """Images and accuracy of the request's own training images, and of test images of its classes where there are any."""
    names = json.loads((predictions.parent.parent / "metrics.json").read_text())["class_names"]
    labels = [names.index(name) for name in request.classes]
    table = pq.read_table(predictions, columns=["id", "part", "label", "prediction"])
    part = np.asarray(table["part"].to_pylist(), dtype=np.str_)
    label, right = table["label"].to_numpy(), table["label"].to_numpy() == table["prediction"].to_numpy()
    mine = np.isin(label, labels)
    if ids:
        mine |= np.fromiter((name in ids for name in table["id"].to_pylist()), bool, len(table))
    found: dict[str, Any] = {}
    for split in ("train", "test"):
        chosen = mine & (part == f"forget_{split}")
        if chosen.any():
            found |= {f"{split}_images": int(chosen.sum()), f"acc_{split}": float(right[chosen].mean())}
    return found


def append_records(ledger: Ledger, outcome: Entry) -> list[Entry]:
    """The records of all requests of a batch; those that are there already are not written again."""
    there = {entry["request"]: entry for entry in ledger.records.read()}
    missing = [asked for asked in outcome["requests"] if asked["request"] not in there]
    head = ledger.state().head
    added = ledger.records.append([{**outcome["shared"], **asked, "journal": head} for asked in missing])
    there |= {entry["request"]: entry for entry in added}
    return [there[asked["request"]] for asked in outcome["requests"]]
