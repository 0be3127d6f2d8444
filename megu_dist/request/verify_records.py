"""Checks a ledger of deletion requests with Python's standard library alone; docs/deletion-records.md tells what and how.

python verify_records.py LEDGER [HASH …]    HASH: of a line, noted down earlier; it must still be there
Exit status 0: nothing is wrong; 1: what is wrong was printed. Nothing is written."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

AFTER = {"added": [""], "started": ["added", "failed"], "failed": ["started"], "finished": ["started"],
         "withdrawn": ["added", "failed"]}  # event → what it may follow, for each of its requests  # fmt: skip
Line = dict[str, Any]


def sha(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_sha(folder: Path) -> str:
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")])
    return hashlib.sha256("".join(f"{sha(path)}  {path.name}\n" for path in files).encode()).hexdigest()


class Ledger:
    def __init__(self, folder: Path, heads: list[str]) -> None:
        self.folder, self.bad, self.notes = folder, list[str](), list[str]()  # bad: what is wrong
        try:
            journal, records = self.read("requests.jsonl"), self.read("records.jsonl")
            known = {entry["hash"] for entry in (*journal, *records)}
            self.bad += [f"{head}: no line has this hash; lines are missing" for head in heads if head not in known]
            self.models(self.check(journal, {record["hash"]: record for record in records}))
        except (ValueError, KeyError, TypeError) as error:  # what follows a broken line says nothing
            self.bad.append(f"{error}" if type(error) is ValueError else f"a line is not as documented: {error!r}")

    def read(self, name: str) -> list[Line]:
        """The lines of a file; each must end with its own hash, and have its number and the hash of the line before."""
        *lines, rest = (self.folder / name).read_bytes().split(b"\n") if (self.folder / name).is_file() else [b""]
        entries, previous = [], "0" * 64
        for number, line in enumerate(lines):
            own = hashlib.sha256(line[:-75] + b"}").hexdigest()
            if line[-75:] != f',"hash":"{own}"}}'.encode():
                raise ValueError(f"{name}, line {number + 1}: was changed: its hash does not fit")
            entries.append(entry := json.loads(line))
            if (entry["schema"], entry["number"], entry["previous"]) != (1, number, previous):
                raise ValueError(f"{name}, line {number + 1}: does not follow the one before, or has another schema")
            previous = own
        torn = ", and an unfinished one" if rest else ""  # it is being written, or there was a crash
        self.notes.append(f"{name}: {len(lines)} lines{torn}; the hash of the last is {previous}")
        return entries

    def check(self, journal: list[Line], records: dict[str, Line]) -> list[Line]:
        """Journal, records and files against each other; the models from the original to the latest."""
        state, asked, models = dict[str, str](), dict[str, Line](), list[Line]()
        for event in journal:
            kind, names = event["event"], event.get("requests") or [event["request"]]
            wrong = [name for name in names if state.get(name, "") not in AFTER[kind]]
            self.bad += [f"request {name}: {kind} after {state.get(name)}" for name in wrong]
            state |= dict.fromkeys(names, kind)
            if kind == "added":
                asked[names[0]], file = event, self.folder / (event["ids_file"] or "")
                if event["ids_file"] and not (file.is_file() and sha(file) == event["ids_sha256"]):
                    self.bad.append(f"{file}: is missing or was changed")
            if kind == "started" and len(models) < 2:  # another original may be tried until a batch is finished
                models = [event["model"]]
            for name, key in zip(names, event.get("records", []), strict=kind == "finished"):
                self.record(name, records.pop(key, None), asked[name], models[-1]["sha256"], event["model"]["sha256"])
            models += [event["model"]] if kind == "finished" else []
        for name in (record["request"] for record in records.values()):  # left by a crash, or by somebody
            told = self.notes if state.get(name) == "started" else self.bad
            told.append(f"record of {name}: the journal does not say that it is finished")
        return models

    def record(self, name: str, record: Line | None, asked: Line, before: str, after: str) -> None:
        if record is None:
            return self.bad.append(f"record of {name}: is not there")
        manifest = self.folder / "batches" / record["batch"] / "split" / "manifest.json"
        pairs = {"request": (record["request_sha256"], asked["hash"]), "ids": (record["ids_sha256"], asked["ids_sha256"]),
                 "classes": (record["classes"], asked["classes"]), "model before": (record["model_before"]["sha256"], before),
                 "model after": (record["model_after"]["sha256"], after),
                 "data": (record["data"]["manifest_sha256"], sha(manifest) if manifest.is_file() else "")}  # fmt: skip
        self.bad += [f"record of {name}: {what} does not fit" for what, (a, b) in pairs.items() if a != b]

    def models(self, models: list[Line]) -> None:
        for number, model in enumerate(models):
            place, latest = self.folder / model["path"], 0 < number == len(models) - 1
            if place.is_dir() and model_sha(place) != model["sha256"]:
                self.bad.append(f"{place}: was changed, or is another model")
            elif place.is_dir() != latest:
                told = "the latest model is not there" if latest else "still knows what was deleted later: delete it"
                (self.bad if latest else self.notes).append(f"{place}: {told}")


if __name__ == "__main__":
    checked = Ledger(Path(sys.argv[1]), sys.argv[2:]) if len(sys.argv) > 1 else sys.exit(__doc__)
    print(*checked.notes, *([f"WRONG: {line}" for line in checked.bad] or ["nothing is wrong"]), sep="\n")
    sys.exit(len(checked.bad) > 0)
