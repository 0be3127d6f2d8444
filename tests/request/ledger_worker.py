"""A client of a ledger in a process of its own, and a sweep that ends such processes between any two writes.

``python ledger_worker.py sweep FOLDER MODEL CACHE``: prints a JSON line per crash point. The unlearning is a stand-in that
writes what a run folder has (the real one takes a minute); everything around it is real.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from megu_dist.config.compose import Composed, load
from megu_dist.data.split import read_ids
from megu_dist.errors import UserError
from megu_dist.request import ask, durable
from megu_dist.request.run import run
from megu_dist.store import write_json, write_text

CRASHED = 77
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def pretend(composed: Composed, folder: Path) -> None:
    """Writes a run folder whose model depends on the model before and on what is to be forgotten."""
    durable.step("unlearn")
    forget = composed.settings.forget
    ids = read_ids(forget.ids_file) if forget.ids_file else []
    asked = json.dumps(
        [forget.classes, ids, forget.already_classes, forget.already_file and read_ids(forget.already_file)]
    )
    before = Path(str(composed.settings.model.path))
    weights = hashlib.sha256((before / "model.safetensors").read_bytes() + asked.encode()).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "unlearned.txt").open("a") as file:
        file.write(f"{folder.name} {asked}\n")
    for name in ("model", "split", "perturbed", "predictions"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "perturbed" / "part.parquet").write_bytes(b"images")
    durable.step("unlearning")
    write_text(folder / "config.yaml", composed.yaml)
    write_text(folder / "model" / "model.safetensors", weights)
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copyfile(before / name, folder / "model" / name)
    counts = {"train": 9, "forget": 2, "retain": 7, "already": 0, "already_classes": [], "data_fingerprint": "x"}
    write_json(folder / "split" / "manifest.json", counts)
    table = {"id": ids or ["train/3"], "part": ["forget_train"] * max(1, len(ids)), "label": [3] * max(1, len(ids))}
    for name, prediction in (("original", 3), ("unlearned", 5)):
        rows = pa.table({**table, "prediction": [prediction] * len(table["id"])})
        pq.write_table(rows, folder / "predictions" / f"{name}.parquet")
    numbers = {"acc_retain_test": 0.9, "acc_forget_train": 0.1, "mia": float("nan")}
    write_json(
        folder / "metrics.json",
        {"models": {"original": numbers, "unlearned": numbers}, "class_names": NAMES, "method": "megu", "oracle": None,
         "seconds": {"total": 1.0}, "environment": {"python": "3"}},
    )  # fmt: skip
    durable.step("unlearned")


@cache
def composed(*words: str) -> Composed:
    """The settings of a command; composed once for all processes that are forked later."""
    return load(words)


def client(folder: Path, model: str, cache_dir: str) -> None:
    """Four requests in three batches. Done again from the start, it takes "is there already" for an answer."""
    os.chdir(folder)
    Path("asked.txt").write_text("train/00000002\ntrain/00000001\n")
    data = ("data=digits", f"data.cache_dir={cache_dir}", "request.dir=ledger")
    for words in (["forget.classes=[three]", "request.id=a"], ["forget.ids_file=asked.txt", "request.id=b"],
                  ["forget.classes=[5]", "request.id=d"], [],
                  ["forget.classes=[4]", "request.id=c"], []):  # fmt: skip
        if not words:
            run(composed(*data, f"model.path={model}"), pretend, lambda text: None)
            continue
        try:
            ask.add(composed(*data, *words))
        except UserError as error:
            if "there is such a request already" not in str(error):
                raise


def in_a_child(work: Callable[[], None]) -> int:
    """Exit status of a forked process that does ``work``."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def crash_at(point: int, torn: bool) -> None:
    """Has this process end at the ``point``-th write: between two, or with half of what is appended on the disk."""
    seen = 0

    def step(name: str) -> None:
        nonlocal seen
        seen += 1
        if seen == point:
            os._exit(CRASHED)

    def append(path: Path, text: str) -> None:
        nonlocal seen
        seen += 1
        if seen == point:
            with path.open("ab", buffering=0) as file:
                file.write(text.encode()[: len(text) // 2])
            os._exit(CRASHED)
        whole(path, text)

    whole = durable.append
    if torn:
        durable.append = append
    else:
        durable.step = step


def sweep(folder: Path, model: str, cache_dir: str) -> None:
    """Every crash point, each in a ledger of its own, and what the same client then makes of it."""
    (folder / "calm").mkdir()
    client(folder / "calm", model, cache_dir)
    for torn in (False, True):
        for point in range(1, 1000):
            where = folder / f"{'torn' if torn else 'step'}-{point}"
            where.mkdir(parents=True)

            def crashing(point: int = point, torn: bool = torn, where: Path = where) -> None:
                crash_at(point, torn)
                client(where, model, cache_dir)

            first = in_a_child(crashing)
            second = in_a_child(lambda where=where: client(where, model, cache_dir))  # type: ignore[misc]
            print(json.dumps({"torn": torn, "point": point, "first": first, "second": second}), flush=True)
            if first != CRASHED:
                break


def slow(seconds: float) -> Callable[[Composed, Path], None]:
    """The stand-in, after a while."""

    def unlearn(composed: Composed, folder: Path) -> None:
        print("unlearning", flush=True)
        time.sleep(seconds)
        pretend(composed, folder)

    return unlearn


def main(what: str, folder: str, model: str, cache_dir: str, *more: Any) -> None:
    if what == "sweep":
        sweep(Path(folder), model, cache_dir)
    else:  # one run of what is pending
        words = [f"request.dir={folder}/ledger", "data=digits", f"model.path={model}", f"data.cache_dir={cache_dir}"]
        done = run(load(words), slow(float(more[0])), lambda text: print(text, flush=True))
        print(f"done {len(done)}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
