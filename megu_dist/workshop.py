"""What many short runs on the same data have in common, made once and kept in one folder.

Benchmark cells and sweep trials run in processes that live for many of them. Opened and decoded data, splits, T and
noise are made by whichever run wants them first, under a lock; the others take them from the folder.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megu_dist import pipeline as stages
from megu_dist.config.registry import lookup
from megu_dist.config.schema import MeguSettings
from megu_dist.data import stream
from megu_dist.data.base import Source
from megu_dist.data.decoded import DecodedImages, decode_all, size
from megu_dist.data.open import open_source
from megu_dist.models.checkpoint import Checkpoint, open_checkpoint
from megu_dist.progress import Reporter
from megu_dist.store import Record, content_key

SECONDS = ("perturb", "finetune")  # stages that count as unlearning


class Workshop:
    """Shared work in ``folder``; data sets of up to ``decode_gb`` GiB are decoded once for all processes."""

    def __init__(self, folder: Path, decode_gb: float) -> None:
        self.folder, self.decode_bytes = folder, decode_gb * 2**30
        self.sources: dict[str, Source] = {}
        self.quiet = Reporter(open(os.devnull, "w"))  # noqa: SIM115  (as long as the process)

    def source(self, s: MeguSettings) -> Source:
        """The settings' data, opened once per process."""
        key = content_key(asdict(s.data))
        if key not in self.sources:
            self.sources[key] = open_source(s.data)
        return self.sources[key]

    def pipeline(self, s: MeguSettings, where: Path) -> stages.Pipeline:
        """A pipeline on the shared source, which says nothing."""
        return stages.Pipeline(s, where, self.quiet, self.source(s))

    def decode(self, s: MeguSettings) -> None:
        """Has the source's images decoded once for all processes, if they are few enough."""
        source = self.source(s)
        if s.model.path:
            preprocess = open_checkpoint(s.model.path).preprocess
        else:
            preprocess = lookup("model", s.model.name).target(s.model).preprocess()
        if source.decoded is not None or size(source, preprocess) > self.decode_bytes:
            return
        with waiting_lock(self.folder / "decoded.lock"), stream.in_this_process():
            found: DecodedImages = decode_all(source, preprocess, self.folder / "decoded", lambda _: None)
        source.decoded = found

    def models(self, pipeline: stages.Pipeline) -> dict[str, Checkpoint]:
        """The original model and the references that the settings name."""
        s = pipeline.settings
        found = {"original": pipeline.open_model(s.model.path, "model.path")}
        for name in ("retrained", "retrained_second"):
            if getattr(s.evaluate, name):
                found[name] = pipeline.open_model(getattr(s.evaluate, name), f"evaluate.{name}")
        return found

    def unlearn(
        self,
        pipeline: stages.Pipeline,
        models: dict[str, Checkpoint],
        until: int | None = None,
        start: Path | None = None,
    ) -> tuple[dict[str, Any], Record]:
        """Metrics of an unlearning, and the split's record.

        With ``until``, after that many of its epochs; with ``start``, from that checkpoint on.
        """
        records, split, perturbed = self._prepare(pipeline, models["original"])
        records.append(pipeline.finetune(split, records[0].key, models["original"], perturbed, until, start))
        unlearned = open_checkpoint(str(pipeline.folder / "model"))
        ordered = {"original": models["original"], "unlearned": unlearned} | models
        pipeline.references = self.folder / "predictions"
        pipeline.evaluate(split, records[0].key, ordered, records, pipeline.settings.method.name)
        return json.loads((pipeline.folder / "metrics.json").read_text()), records[0]

    def _prepare(self, pipeline: stages.Pipeline, original: Checkpoint) -> tuple[list[Record], Any, Record | None]:
        """Split, T and noise of the request: made once, by the first run that wants them, for all that do."""
        s = pipeline.settings
        inputs: dict[str, Any] = {"data": pipeline.source.fingerprint(), "forget": asdict(s.forget)}
        inputs |= {"seed": s.seed.unlearn, "needs": pipeline.needs_perturbed}
        if pipeline.needs_perturbed:
            made = {"perturb": asdict(s.perturb) | {"noise": pipeline.noise}}
            inputs |= {"oracle": asdict(s.oracle), "model": original.fingerprint()} | made
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


def tidy(folder: Path) -> None:
    """Removes what a run leaves but its numbers."""
    for name in ("model", "predictions", "checkpoints", "perturbed", ".previous"):
        path = folder / name
        path.unlink() if path.is_symlink() else shutil.rmtree(path, ignore_errors=True)
    shutil.rmtree(folder / ".stages", ignore_errors=True)


@contextmanager
def here_if_one_worker(s: MeguSettings) -> Iterator[None]:
    """Small runs are done in this process; those with several workers are Ray jobs of their own, as in `megu unlearn`."""
    if several_workers(s):
        yield
        return
    with stream.in_this_process():
        yield


def several_workers(s: MeguSettings) -> bool:
    """Whether training needs a worker group of its own."""
    return s.train.num_workers > 1 or s.engine.name != "ddp"


@contextmanager
def waiting_lock(path: Path) -> Iterator[None]:
    """One process at a time; the others wait. A dead process holds nothing."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


PATHS = ("data.path", "data.test_path", "model.path", "evaluate.retrained", "evaluate.retrained_second",
         "forget.ids_file", "oracle.descriptions")  # fmt: skip


def path_words(s: MeguSettings) -> list[str]:
    """Words that name the settings' local files in full: other processes have other working folders, and run.dir."""
    found = []
    for key in PATHS:
        section, name = key.split(".")
        value = getattr(getattr(s, section), name)
        if value is not None:
            path = Path(value).expanduser()
            found.append(f"{key}={quoted(path.resolve() if path.exists() else value)}")
    return found


def quoted(path: Path | str) -> str:
    """A path as a value in a key=value word."""
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"


def runners(s: MeguSettings, wanted: int, num_gpus: float) -> int:
    """How many runs go on at a time: as asked, else one per share of a GPU, else one per core."""
    import ray

    if wanted:
        return wanted
    have = ray.cluster_resources()
    if num_gpus:
        return max(1, int(have.get("GPU", 0) / num_gpus))
    return max(1, int(len(os.sched_getaffinity(0)) if s.run.address is None else have["CPU"]))


def environment(count: int) -> dict[str, Any]:
    """The runtime environment of ``count`` processes that share this machine's cores."""
    from megu_dist.engine.base import THREADS

    threads = str(max(1, (os.cpu_count() or 1) // max(1, count)))
    return {"env_vars": {THREADS: threads, "OMP_NUM_THREADS": threads}}
