"""Starts ``megu`` in a process of its own, finds the processes of its Ray, disturbs them, and looks for what is left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from outcomes import numbers

MARK = "MEGU_FAULT_TEST"  # an environment variable that all processes of a run, or of a cluster, inherit
PATIENCE_S = 240.0
STAGES = ["split", "oracle", "perturb", "finetune", "evaluate", "report"]
TITLES = {  # what Ray calls the processes
    "reader": r"ray::(MapBatches\((\w+Reader|_Scan)\)|.*[Rr]ead)",
    "perturber": r"ray::.*\(Perturber\)",
    "predictor": r"ray::.*\(Predictor\)",
    "train worker": r"ray::(.*TrainWorker|RayTrainWorker)",
    "replica": r"ray::ServeReplica",
    "agent": r"ray::(DashboardAgent|RuntimeEnvAgent)",
}


@dataclass(frozen=True)
class Process:
    """One line of the process table."""

    pid: int
    title: str

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Sends a signal; it may be gone already."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)


def marked(mark: str) -> list[Process]:
    """All processes that inherited ``mark``, without zombies."""
    found = []
    wanted = f"{MARK}={mark}".encode()
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        try:
            if wanted not in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                continue
            title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if title and pid != os.getpid():
            found.append(Process(pid, title))
    return found


def descendants(pid: int) -> list[Process]:
    """The processes below ``pid``; quick, since only those are looked at."""
    found: list[Process] = []
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return found
    for task in tasks:
        try:
            children = [int(word) for word in (task / "children").read_text().split()]
        except OSError:
            continue
        for child in children:
            try:
                title = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            found += [Process(child, title), *descendants(child)]
    return found


def named(processes: Sequence[Process], what: str) -> list[Process]:
    """Those with the title of ``what`` (a key of :data:`TITLES`)."""
    return [one for one in processes if re.match(TITLES[what], one.title)]


def wait_for(condition: Callable[[], Any], what: str, patience: float = PATIENCE_S, every: float = 0.02) -> Any:
    """What ``condition`` returns once it is true."""
    deadline = time.monotonic() + patience
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"waited {patience:g} s in vain for {what}"
        time.sleep(every)


@dataclass
class Command:
    """``megu WORDS`` as a process; ``root`` is where its temporary files go."""

    words: list[str]
    root: Path
    name: str
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    environment: dict[str, str] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()  # of the command line, as for a network namespace
    disk: Path | None = None  # where the runs are; none: in ``root``
    process: subprocess.Popen[str] | None = None

    @property
    def folder(self) -> Path:
        """The run folder."""
        return (self.disk or self.root) / self.name

    @property
    def log(self) -> str:
        """What the command and its Ray wrote."""
        return "".join(file.read_text() for file in (self.folder / "log.txt", self.said) if file.is_file())

    @property
    def said(self) -> Path:
        """The file of the command's own output."""
        return self.root / f"{self.name}.out"

    @property
    def output(self) -> str:
        """What the user saw."""
        return self.said.read_text()

    def start(self) -> Command:
        """Starts it; an earlier start of the same command must have ended."""
        scratch = self.root / "scratch"
        scratch.mkdir(exist_ok=True)
        kept = {key for key in os.environ if not key.startswith(("RAY_", MARK)) or key.startswith("RAY_AUTH")}
        environment = {key: os.environ[key] for key in kept}
        environment |= {MARK: self.mark, "TMPDIR": str(scratch), "RAY_TMPDIR": "/tmp"} | self.environment
        line = [*self.prefix, sys.executable, "-m", "megu_dist.cli", *self.words]
        line += [f"run.dir={self.folder.parent}", f"run.name={self.name}"]
        with self.said.open("w") as out:
            self.process = subprocess.Popen(
                line,
                stdout=out,
                stderr=out,
                text=True,
                env=environment,
                start_new_session=True,
                preexec_fn=_heeds_ctrl_c,
            )
        return self

    def wait(self, patience: float = PATIENCE_S) -> int:
        """Its exit status."""
        assert self.process is not None
        return self.process.wait(patience)

    def processes(self) -> list[Process]:
        """Those that it started."""
        assert self.process is not None
        return descendants(self.process.pid)

    def alive(self) -> None:
        """Fails when it has ended."""
        assert self.process is not None
        assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.log[-6000:]}"

    def until(self, condition: Callable[[], Any], what: str, every: float = 0.005) -> Any:
        """Waits while the command runs."""

        def look() -> Any:
            found = condition()
            if not found:
                self.alive()
            return found

        return wait_for(look, what, every=every)

    def end(self) -> None:
        """Leaves no process behind, whatever happened."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        for one in marked(self.mark):
            one.kill()

    def finish(self) -> dict[str, Any]:
        """Waits for success; the metrics."""
        code = self.wait()
        assert code == 0, self.log[-8000:]
        return numbers(self.folder)


def _heeds_ctrl_c() -> None:
    """A shell script's background commands ignore it, and so do their children, as these tests may be."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def command(words: list[str], root: Path, name: str, **more: Any) -> Iterator[Command]:
    """A command that runs while the block does."""
    made = Command(words, root, name, **more)
    try:
        yield made.start()
    finally:
        made.end()


def kill_one(run: Command, what: str, ready: Callable[[], Any] = lambda: True) -> Process:
    """Kills the first process of this kind that is seen once ``ready``."""
    run.until(ready, f"the moment for killing a {what}")
    victim: Process = run.until(lambda: named(run.processes(), what), f"a {what}")[0]
    victim.kill()
    return victim


def moments(folder: Path) -> dict[str, Callable[[], Any]]:
    """What can be seen of a run once the processes of a kind (a key of :data:`TITLES`) are at work."""
    return {
        "replica": lambda: True,
        "reader": (folder / "transition.json").exists,
        "perturber": lambda: list(folder.glob(".tmp/perturb-*/perturbed/part-*.parquet")),
        "train worker": lambda: list(folder.glob("checkpoints/*/*/epoch-00000*/rank-0.json")),
        "predictor": (folder / "history.jsonl").exists,
    }


def leftovers(root: Path, folder: Path) -> list[str]:
    """Temporary files below the run's folders, and in the place for temporary files."""
    inside = [path for path in (folder / ".tmp").iterdir()] if (folder / ".tmp").is_dir() else []
    hidden = [path for path in folder.rglob(".*") if path.is_file() and path.name not in (".lock",) and _odd(path)]
    return [str(path) for path in (*inside, *hidden, *(root / "scratch").glob("megu-*"))]


def _odd(path: Path) -> bool:
    """Whether a hidden file is one that is renamed when it is whole, and not Ray's marker of a storage folder."""
    return path.name not in (".validate_storage_marker", ".gitignore") and ".stages" not in path.parts


def gone(mark: str, agents: bool = True) -> None:
    """Waits until no process with ``mark`` is left.

    Two agents of Ray try for a minute to tell the head that their raylet has died, also when both were killed with the
    driver; without ``agents`` they are not waited for.
    """
    deadline = time.monotonic() + 120
    while left := [one for one in marked(mark) if agents or not re.match(TITLES["agent"], one.title)]:
        assert time.monotonic() < deadline, f"still there: {[(one.pid, one.title.strip()[:60]) for one in left]}"
        time.sleep(0.2)


def fill(disk: Path) -> Path:
    """Takes every byte that is left."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            with suppress(OSError):
                while file.write(b"x" * size) == size:
                    pass
    return filler


def is_told_of_a_full_disk(run: Command) -> None:
    """A sentence that says what is wrong and what to do; no traceback."""
    assert run.wait() == 2, run.log[-6000:]
    assert "a disk is full" in run.output
    assert "run the same command again" in run.output
    assert "Traceback" not in run.output
