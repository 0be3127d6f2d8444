"""A one-worker fit in the calling process: the same loop as a Ray Train job's, without starting a worker group.

For actors that run many short fits one after the other (benchmark cells, sweep trials): what Ray Train does for a job
of its own takes longer than such a fit.
"""

from __future__ import annotations

import shutil
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

from megu_dist.data import stream
from megu_dist.engine import checkpoints
from megu_dist.engine.worker import Place, TrainJob, work

KEPT = 2  # checkpoints


def suits(job: TrainJob) -> bool:
    """Whether this process was told to work by itself, and the job needs no process group."""
    return stream.here() and job.settings.train.num_workers == 1 and job.settings.engine.name == "ddp"


def fit_here(job: TrainJob, checkpoint_root: Path) -> dict[str, Any]:
    """Runs ``job``; checkpoints go to ``checkpoint_root``, and the newest whole one there is resumed from."""
    import torch

    checkpoint_root.mkdir(parents=True, exist_ok=True)
    resume = checkpoints.to_resume(checkpoint_root, job.resume, job.settings.run.resume)
    history = Path(job.history)
    if resume is None:
        history.unlink(missing_ok=True)
    attempt = checkpoint_root / f"attempt-{uuid.uuid4().hex[:12]}"

    def report(_: dict[str, Any], folder: Path | None, name: str) -> None:
        if folder is None:
            return
        attempt.mkdir(exist_ok=True)
        shutil.copytree(folder, attempt / f".{name}")
        (attempt / f".{name}").rename(attempt / name)
        made = attempt.glob(f"{checkpoints.PREFIX}*")
        for old in sorted(made, key=lambda path: checkpoints.progress_of(path).order)[:-KEPT]:
            shutil.rmtree(old)

    device = torch.device("cuda" if job.settings.train.use_gpu else "cpu")
    result = work(replace(job, resume=None), Place(0, 1, 1, device, report, resume))
    assert result is not None
    if history.is_file():
        shutil.copyfile(history, Path(job.out) / "history.jsonl")
    else:
        (Path(job.out) / "history.jsonl").touch()
    return result
