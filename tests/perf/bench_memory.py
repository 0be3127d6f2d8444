"""Resident memory of the driver and of the workers while retained images are streamed, by their number.

The rows are real and the files few: Parquet files of 10,000 images each that are links to one file. For each size, a
process of its own starts Ray, selects the forget set (1 %) and has an actor read epochs as a training worker does: one,
or as many as make 160,000 rows, since processes and their allocators grow in their first seconds whatever the data.

    python tests/perf/bench_memory.py                      the curve, 10,000 to 1,280,000 rows
    python tests/perf/bench_memory.py 160000 SIDE=224      one size, with images of another size decoded
    pytest -m perf tests/perf/bench_memory.py              the curve's ends: ≤ 10 % apart
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

SIZES = (10_000, 40_000, 160_000, 640_000, 1_280_000)
PER_FILE = 10_000
WARM = 160_000  # rows read at least
GROWTH = 1.10


def make_files(folder: Path, rows: int) -> None:
    """``rows`` training images of ten classes, and some test images."""
    from PIL import Image

    def png(value: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(np.full((32, 32), value, np.uint8)).save(buffer, "PNG")
        return buffer.getvalue()

    images = [png(value) for value in range(250)]
    numbers = np.arange(PER_FILE)
    table = pa.table({"image": [images[n % 250] for n in numbers], "label": numbers % 10})
    pq.write_table(table, folder / "one", row_group_size=1000)
    pq.write_table(table.slice(0, 100), folder / "test.parquet")
    for number in range(rows // PER_FILE):
        os.link(folder / "one", folder / f"train-{number:04d}.parquet")


class Peaks(threading.Thread):
    """The largest private memory (MB) seen of this process, of the actor, and of any other Ray worker."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peaks: dict[str, float] = {}
        self.done = threading.Event()

    def run(self) -> None:
        me = psutil.Process()
        while not self.done.wait(0.2):
            for process in [me, *me.children(recursive=True)]:
                try:
                    title = " ".join(process.cmdline()[:1])
                    kind = "driver" if process == me else title.removeprefix("ray::").split("(")[0].split(".")[0]
                    status = Path(f"/proc/{process.pid}/status").read_text()
                except (OSError, psutil.Error):
                    continue
                private = [line for line in status.splitlines() if line.startswith("RssAnon")]
                if kind == "driver" or title.startswith("ray::"):
                    size = int(private[0].split()[1]) / 1000 if private else 0.0
                    self.peaks[kind] = max(self.peaks.get(kind, 0.0), size)


def measure(rows: int, side: int) -> dict[str, Any]:
    """One size, in this process."""
    import ray
    import torch

    from megu_dist.config.compose import load
    from megu_dist.data.open import open_source
    from megu_dist.data.plan import num_steps
    from megu_dist.data.split import make_split
    from megu_dist.data.stream import ReadAhead
    from megu_dist.engine.worker import TrainJob, _rows
    from megu_dist.models.preprocess import Preprocess
    from megu_dist.raysession import ray_session

    class Worker:
        """Reads epochs as the fit loop does."""

        def read(self, job: TrainJob, steps: int, epochs: int) -> int:
            torch.set_num_threads(1)
            _, retain = _rows(job, False)
            device = torch.device("cpu")
            return sum(
                len(part) for epoch in range(epochs) for part in ReadAhead(retain.steps(epoch, steps, 0, 0, 1, device))
            )

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_files(folder, rows)
        words = ["data=parquet", f"data.path={folder}", "forget.scenario=random", "forget.fraction=0.01",
                 "train.augment=flip", "train.batch_size=128"]  # fmt: skip
        settings = load(words, ["train=scratch"]).settings
        peaks = Peaks()
        with ray_session(settings):
            peaks.start()
            start = time.monotonic()
            source = open_source(settings.data)
            split = make_split(source, settings.forget, [], 0, lambda _: None)
            selected = time.monotonic() - start
            preprocess = Preprocess(side, side, 3, (0.5,) * 3, (0.5,) * 3)
            job = TrainJob(settings, source, source.class_names, preprocess, split.rows, 0, "", "", None, None)
            kept = rows - len(split.rows)
            epochs = max(1, WARM // rows)
            start = time.monotonic()
            actor = ray.remote(Worker).options(num_cpus=1).remote()
            read = ray.get(actor.read.remote(job, num_steps(kept, settings.train.batch_size), epochs))
            seconds = time.monotonic() - start
            peaks.done.set()
        assert read == epochs * kept
    return {"rows": rows, "side": side, "split_s": round(selected, 1), "rows_per_s": round(read / seconds),
            "peak_mb": {kind: round(size) for kind, size in sorted(peaks.peaks.items())}}  # fmt: skip


def measured(rows: int, side: int = 32) -> dict[str, Any]:
    """One size, in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, str(rows), f"SIDE={side}", "HERE"], capture_output=True, text=True, timeout=3000
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.perf
@pytest.mark.timeout(3600)
def test_memory_does_not_grow_with_the_retained_images() -> None:
    small, large = measured(SIZES[0]), measured(SIZES[-1])
    print(small, large)
    for kind in small["peak_mb"].keys() & large["peak_mb"].keys():
        assert large["peak_mb"][kind] <= GROWTH * small["peak_mb"][kind], kind


def main(words: list[str]) -> None:
    side = next((int(word.removeprefix("SIDE=")) for word in words if word.startswith("SIDE=")), 32)
    for rows in [int(word) for word in words if word.isdigit()] or SIZES:
        print(json.dumps(measure(rows, side) if "HERE" in words else measured(rows, side)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
