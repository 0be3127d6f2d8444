"""The actor that works cells off: one after the other, in its own process, with everything imported and decoded once."""

from __future__ import annotations

import json
import shutil
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from megu_dist import pipeline as stages
from megu_dist.benchmark.plan import Cell, merge
from megu_dist.config.compose import Composed, load
from megu_dist.config.registry import lookup
from megu_dist.config.schema import keyed
from megu_dist.errors import UserError
from megu_dist.metrics.objective import objective
from megu_dist.models.checkpoint import open_checkpoint
from megu_dist.store import content_key, write_json
from megu_dist.workshop import Workshop, here_if_one_worker, quoted, tidy

Result = dict[str, Any]
RESULT = "result.json"
SURENESS = "sureness.npz"
SIDES = ("unlearned", "retrained")  # what U-LiRA tells apart


class CellRunner:
    """Works on cells of the benchmark in ``folder``; ``words`` are the user's own."""

    def __init__(self, folder: str, words: list[str], extra_dir: str | None, decode_gb: float) -> None:
        import megu_dist  # noqa: F401  (registers the CIFAR ResNet)

        self.folder, self.words, self.extra_dir = Path(folder), words, extra_dir
        self.workshop = Workshop(self.folder, decode_gb)

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
        run = [f"run.dir={quoted(where.parent)}", f"run.name={quoted(where.name)}"]
        if "original" in cell.needs:
            run.append(f"model.path={quoted(self._model(cell.needs['original']))}")
        if "retrained" in cell.needs:
            run.append(f"evaluate.retrained={quoted(self._model(cell.needs['retrained']))}")
        if "retrained_second" in cell.needs:
            run.append(f"evaluate.retrained_second={quoted(self._model(cell.needs['retrained_second']))}")
        run.append(f"oracle.store={quoted(self.folder / 'ratings')}")
        return load(merge(self.words, cell.words, extra, cell.fixed, run), (), self.extra_dir)

    def _model(self, cell_id: str) -> Path:
        return self.folder / "cells" / cell_id / "model"

    def _key(self, cell: Cell, composed: Composed) -> str:
        """What the cell's numbers follow from: its settings and the weights that it starts from."""
        settings = asdict(composed.settings)
        dropped = ["run", "report", "benchmark", "analyze", "sweep", "request"]
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
            {"kind": cell.kind, "settings": settings, "data": self.workshop.source(composed.settings).fingerprint()}
        )

    def _work(self, cell: Cell, composed: Composed, where: Path) -> Result:
        s = composed.settings
        with here_if_one_worker(s):
            pipeline = self.workshop.pipeline(s, where)
            self.workshop.decode(s)
            if cell.kind in ("original", "retrained"):
                return self._train(pipeline)
            return self._unlearn(cell, pipeline)

    def _train(self, pipeline: stages.Pipeline) -> Result:
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
        metrics, split = self.workshop.unlearn(pipeline, self.workshop.models(pipeline))
        result: Result = {"scenario": s.forget.scenario, "forget": metrics["forget"], "models": metrics["models"]}
        result |= {name: metrics[name] for name in ("versus_retrained", "versus_floor") if name in metrics}
        if cell.kind != "trial":
            result["forget_hash"] = split.info["forget_hash"]
            _keep_sureness(pipeline.folder)
        seconds = metrics["seconds"]
        result["seconds"] = seconds.get("perturb", 0.0) + seconds["finetune"]
        if cell.kind == "trial":
            result["objective"] = objective(metrics["models"], s.forget.scenario)
        tidy(pipeline.folder)
        return result


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


def read_result(folder: Path, cell_id: str) -> Result | None:
    """What is recorded of a cell."""
    path = folder / "cells" / cell_id / RESULT
    return json.loads(path.read_text()) if path.is_file() else None
