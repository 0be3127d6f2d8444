"""The actor that works cells off: one after the other, in its own process, with everything imported and decoded once."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from megu_dist import pipeline as stages
from megu_dist.benchmark.plan import Cell, merge
from megu_dist.benchmark.search import objective
from megu_dist.config.compose import Composed, load
from megu_dist.config.registry import lookup
from megu_dist.config.schema import MeguSettings, keyed
from megu_dist.data import stream
from megu_dist.data.base import Source
from megu_dist.data.decoded import DecodedImages, decode_all, size
from megu_dist.data.open import open_source
from megu_dist.errors import UserError
from megu_dist.models.checkpoint import open_checkpoint
from megu_dist.progress import Reporter
from megu_dist.store import content_key, write_json

Result = dict[str, Any]
RESULT = "result.json"
SURENESS = "sureness.npz"
SIDES = ("unlearned", "retrained")  # what U-LiRA tells apart


class CellRunner:
    """Works on cells of the benchmark in ``folder``; ``words`` are the user's own."""

    def __init__(self, folder: str, words: list[str], extra_dir: str | None, decode_gb: float) -> None:
        import megu_dist  # noqa: F401  (registers the CIFAR ResNet)

        self.folder, self.words, self.extra_dir = Path(folder), words, extra_dir
        self.decode_bytes = decode_gb * 2**30
        self.sources: dict[str, Source] = {}
        self.quiet = Reporter(open(os.devnull, "w"))  # noqa: SIM115  (as long as the process)

    def run(self, cell: Cell, extra: list[str]) -> Result:
        """Does the cell unless it was done with the same settings, and writes ``cells/<id>/result.json``.

        A cell that fails is recorded with its error; only what the method cannot do at all is "not applicable".
        """
        where = self.folder / "cells" / cell.id
        where.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        result: Result = about(cell) | {"words": extra or list(cell.tried)}
        try:
            composed = self._compose(cell, extra, where)
            key = self._key(cell, composed)
            done = read_result(self.folder, cell.id)
            if done is not None and done["key"] == key and done["status"] != "failed":
                return done | {"cached": True}
            result |= {"key": key, **self._work(cell, composed, where), "status": "done"}
        except NotApplicableError as error:
            result |= {"key": key, "status": "not applicable", "error": str(error)}
        except Exception as error:
            (where / "error.txt").write_text(traceback.format_exc())
            result |= {"key": "", "status": "failed", "error": f"{type(error).__name__}: {error}"}
        result["cell_seconds"] = round(time.monotonic() - start, 3)
        write_json(where / RESULT, result)
        return result

    def _compose(self, cell: Cell, extra: list[str], where: Path) -> Composed:
        run = [f"run.dir={_quoted(where.parent)}", f"run.name={_quoted(where.name)}"]
        if "original" in cell.needs:
            run.append(f"model.path={_quoted(self._model(cell.needs['original']))}")
        if "retrained" in cell.needs:
            run.append(f"evaluate.retrained={_quoted(self._model(cell.needs['retrained']))}")
        if "retrained_second" in cell.needs:
            run.append(f"evaluate.retrained_second={_quoted(self._model(cell.needs['retrained_second']))}")
        run.append(f"oracle.store={_quoted(self.folder / 'ratings')}")
        return load(merge(self.words, cell.words, extra, cell.fixed, run), (), self.extra_dir)

    def _model(self, cell_id: str) -> Path:
        return self.folder / "cells" / cell_id / "model"

    def _key(self, cell: Cell, composed: Composed) -> str:
        """What the cell's numbers follow from: its settings and the weights that it starts from."""
        settings = asdict(composed.settings)
        dropped = ["run", "report", "benchmark", "analyze", "request"]
        if cell.kind in ("original", "retrained"):
            dropped += ["oracle", "perturb", "method", "evaluate"]
        elif not lookup("method", composed.settings.method.name).target.needs_perturbed:
            dropped += ["oracle", "perturb"]
        for name in dropped:
            del settings[name]
        settings = {k: keyed(part) if isinstance(part, dict) else part for k, part in settings.items()}
        roles = {"original": ("model", "path"), "retrained": ("evaluate", "retrained")}
        roles["retrained_second"] = ("evaluate", "retrained_second")
        for role, (section, name) in roles.items():
            if role in cell.needs:
                settings[section][name] = open_checkpoint(str(self._model(cell.needs[role]))).fingerprint()
        return content_key(
            {"kind": cell.kind, "settings": settings, "data": self._source(composed.settings).fingerprint()}
        )

    def _work(self, cell: Cell, composed: Composed, where: Path) -> Result:
        s = composed.settings
        with here_if_one_worker(s):
            source = self._source(s)
            pipeline = stages.Pipeline(s, where, self.quiet, source)
            if cell.kind in ("original", "retrained"):
                return self._train(pipeline)
            self._decode(source, s)
            return self._unlearn(cell, pipeline)

    def _source(self, s: MeguSettings) -> Source:
        """The cell's data, opened once per process."""
        key = content_key(asdict(s.data))
        if key not in self.sources:
            self.sources[key] = open_source(s.data)
        return self.sources[key]

    def _decode(self, source: Source, s: MeguSettings) -> None:
        """Has the source's images decoded once for all processes, if they are few enough."""
        if s.model.path:
            preprocess = open_checkpoint(s.model.path).preprocess
        else:
            preprocess = lookup("model", s.model.name).target(s.model).preprocess()
        if source.decoded is not None or size(source, preprocess) > self.decode_bytes:
            return
        with waiting_lock(self.folder / "decoded.lock"), stream.in_this_process():
            found: DecodedImages = decode_all(source, preprocess, self.folder / "decoded", lambda _: None)
        source.decoded = found

    def _train(self, pipeline: stages.Pipeline) -> Result:
        self._decode(pipeline.source, pipeline.settings)
        if pipeline.settings.exclude_forget:
            pipeline.check_request()
        stages.train(pipeline)
        told = json.loads((pipeline.folder / "training.json").read_text())
        shutil.rmtree(pipeline.folder / "checkpoints", ignore_errors=True)
        return {"seconds": told["seconds"]}

    def _unlearn(self, cell: Cell, pipeline: stages.Pipeline) -> Result:
        s = pipeline.settings
        pipeline.check_request()
        try:
            pipeline.check_method()
        except UserError as error:
            raise NotApplicableError(str(error)) from None
        models = {"original": pipeline.open_model(s.model.path, "model.path")}
        for name in ("retrained", "retrained_second"):
            if getattr(s.evaluate, name):
                models[name] = pipeline.open_model(getattr(s.evaluate, name), f"evaluate.{name}")
        records, split, perturbed = self._prepare(pipeline, models["original"])
        records.append(pipeline.finetune(split, records[0].key, models["original"], perturbed))
        unlearned = open_checkpoint(str(pipeline.folder / "model"))
        ordered = {"original": models["original"], "unlearned": unlearned} | models
        pipeline.references = self.folder / "predictions"
        pipeline.evaluate(split, records[0].key, ordered, records, s.method.name)
        metrics = json.loads((pipeline.folder / "metrics.json").read_text())
        result: Result = {"scenario": s.forget.scenario, "forget": metrics["forget"], "models": metrics["models"]}
        result |= {name: metrics[name] for name in ("versus_retrained", "versus_floor") if name in metrics}
        if cell.kind != "trial":
            result["forget_hash"] = records[0].info["forget_hash"]
            _keep_sureness(pipeline.folder)
        seconds = metrics["seconds"]
        result["seconds"] = seconds.get("perturb", 0.0) + seconds["finetune"]
        if cell.kind == "trial":
            result["objective"] = objective(metrics["models"], s.forget.scenario)
        for name in ("model", "predictions", "checkpoints", "perturbed", ".previous"):  # what is kept is the numbers
            path = pipeline.folder / name
            path.unlink() if path.is_symlink() else shutil.rmtree(path, ignore_errors=True)
        shutil.rmtree(pipeline.folder / ".stages", ignore_errors=True)
        return result

    def _prepare(self, pipeline: stages.Pipeline, original: Any) -> tuple[list[Any], Any, Any]:
        """Split, T and noise of the request: made once, by the first cell that wants them, for all that do."""
        s = pipeline.settings
        inputs: dict[str, Any] = {"data": pipeline.source.fingerprint(), "forget": asdict(s.forget)}
        inputs |= {"seed": s.seed.unlearn, "needs": pipeline.needs_perturbed}
        if pipeline.needs_perturbed:
            inputs |= {"oracle": asdict(s.oracle), "perturb": asdict(s.perturb), "model": original.fingerprint()}
        folder = self.folder / "shared" / content_key(inputs)[:16]
        folder.mkdir(parents=True, exist_ok=True)
        with waiting_lock(folder / ".prepare"):
            shared = stages.Pipeline(s, folder, self.quiet, pipeline.source)
            shared.check_request()
            split, record = shared.split()
            records, perturbed = [record], None
            if pipeline.needs_perturbed:
                shared.check_oracle()
                with waiting_lock(self.folder / "oracle.lock"):  # who starts Serve also ends it, under nobody's hands
                    records.append(shared.oracle(split, record.key, original))
                perturbed = shared.perturb(split, record.key, original, records[-1])
                records.append(perturbed)
        if perturbed is not None:
            link = pipeline.folder / "perturbed"
            link.unlink(missing_ok=True)
            link.symlink_to(folder / "perturbed")
        return records, split, perturbed


def about(cell: Cell) -> Result:
    """What says which cell a result is of."""
    told = ("id", "kind", "group", "target", "method", "base", "seed", "trial")
    return {name: getattr(cell, name) for name in told}


def _keep_sureness(folder: Path) -> None:
    """What U-LiRA wants of a cell: φ of the forget images, by the unlearned and the retrained model."""
    from megu_dist.metrics.predict import read
    from megu_dist.metrics.u_lira import sureness

    sides = [sureness(read(folder / "predictions" / f"{name}.parquet")["forget_train"]) for name in SIDES]
    np.savez(folder / SURENESS, unlearned=sides[0], retrained=sides[1])


class NotApplicableError(Exception):
    """The method is not defined for the request."""


@contextmanager
def here_if_one_worker(s: MeguSettings) -> Iterator[None]:
    """Small cells are done in this process; those with several workers are Ray jobs of their own, as in `megu unlearn`."""
    if s.train.num_workers > 1 or s.engine.name != "ddp":
        yield
        return
    with stream.in_this_process():
        yield


@contextmanager
def waiting_lock(path: Path) -> Iterator[None]:
    """One process at a time; the others wait. A dead process holds nothing."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def read_result(folder: Path, cell_id: str) -> Result | None:
    """What is recorded of a cell."""
    path = folder / "cells" / cell_id / RESULT
    return json.loads(path.read_text()) if path.is_file() else None


def _quoted(path: Path | str) -> str:
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"
