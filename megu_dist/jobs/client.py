"""Talks to a cluster's job server: starts a request once, follows a job through lost connections, lists and stops."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megu_dist.errors import UserError, nearest
from megu_dist.jobs.options import ADDRESS_VARIABLES
from megu_dist.jobs.request import Request

LIVE = ("PENDING", "RUNNING")
TIMEOUT_S = 60.0  # for one answer of the job server
QUIET_S = 15.0  # without a line of the log: ask whether the job is still there
STALE_S = 120.0  # without a line of the log: the connection may be dead, take a new one
INTERRUPTED = 130  # exit status of a job that was stopped

Say = Callable[[str], None]


class Lost(Exception):
    """The job server did not answer; it may again."""


def say(text: str) -> None:
    """A word of megu's own, beside the job's output."""
    print(f"megu: {text}", file=sys.stderr, flush=True)


class Cluster:
    """One job server. Every call raises :class:`Lost`, or :class:`UserError` for what waiting does not mend."""

    def __init__(self, address: str, ca: str | None = None) -> None:
        self.address = address
        with _without_variables(), _told(address):
            self._client = _client_class()(address, verify=ca or True)

    def jobs(self) -> list[Any]:
        """All jobs that were submitted, oldest first."""
        with _told(self.address):
            found = [job for job in self._client.list_jobs() if job.submission_id]
        return sorted(found, key=lambda job: job.start_time or 0)

    def info(self, job: str) -> Any:
        """Details of one job."""
        with _told(self.address):
            return self._client.get_job_info(job)

    def logs(self, job: str) -> str:
        """All that the job has written."""
        with _told(self.address):
            return self._client.get_job_logs(job) or ""

    def known(self, job: str) -> Any:
        """Details of a job that a user named."""
        names = [one.submission_id for one in self.jobs()]
        if job not in names:
            raise UserError(f"{self.address} has no job {job!r}: {nearest(job, names)}")
        return self.info(job)

    def start(self, request: Request, again: bool, patience: float) -> tuple[str, bool]:
        """Id of the job that does ``request``, and whether this call started it.

        A running or finished one is taken as it is; one that failed or was stopped is started again under the next
        number, and so is a finished one with ``again``. The id follows from the request, so that asking twice, or by two
        people at once, starts one job.
        """
        deadline, told = time.monotonic() + patience, False
        while True:
            try:
                job, state = _latest(request.id, {one.submission_id: str(one.status.value) for one in self.jobs()})
                if state in LIVE or (state == "SUCCEEDED" and not again):
                    return job, False
                job = _next(request.id, job) if state else request.id
                if self._submit(job, request):
                    return job, True
            except Lost as error:  # whether the job was started is seen in the list
                if time.monotonic() > deadline:
                    raise
                if not told:
                    say(f"{self.address} does not take the job ({error}); trying again for {patience:.0f} s")
                told = True
                time.sleep(2)

    def _submit(self, job: str, request: Request) -> bool:
        """Sends the package, where the cluster lacks it, and the job. False: somebody has just started the same."""
        body = {**request.body, "runtime_env": dict(request.body["runtime_env"])}
        with tempfile.TemporaryDirectory() as folder, _told(self.address):
            if request.package:
                file = Path(folder) / "package.zip"
                file.write_bytes(request.package.content)
                body["runtime_env"]["working_dir"] = str(file)  # Ray sends it and puts its URI there
            try:
                self._client.submit_job(submission_id=job, **body)
            except RuntimeError as error:
                if "already exists" in str(error):
                    return False
                raise
        return True

    def stop(self, job: str, patience: float = 60.0) -> str:
        """Stops the job and waits until it is; its state."""
        with _told(self.address):
            self._client.stop_job(job)
        end = time.monotonic() + patience
        while (state := str(self.info(job).status.value)) in LIVE and time.monotonic() < end:
            time.sleep(0.5)
        return state

    def follow(self, job: str, patience: float, write: Say) -> int:
        """Writes the job's log as it comes until the job ends; its exit status.

        A lost connection is taken up again where the log was, for ``patience`` seconds from when it was lost.
        """
        shown = _Shown(write)
        lost_since: float | None = None
        wait = 0.5
        while True:
            try:
                details = self.info(job)
                if lost_since is not None:
                    say(f"connected again after {time.monotonic() - lost_since:.0f} s")
                lost_since, wait = None, 0.5
                if str(details.status.value) not in LIVE:
                    return self._finish(job, details, shown)
                asyncio.run(self._tail(job, shown))
            except Lost as error:
                now = time.monotonic()
                if lost_since is None:
                    lost_since = now
                    say(f"lost {self.address} ({error}); the job goes on, trying again")
                if now - lost_since > patience:
                    raise UserError(
                        f"{self.address} has not answered for {patience:.0f} s; job {job} may go on: "
                        f"run `megu jobs logs {job} --follow` to take it up again"
                    ) from None
                time.sleep(wait)
                wait = min(2 * wait, 10.0)

    async def _tail(self, job: str, shown: _Shown) -> None:
        """Writes the log until it ends or has been quiet for so long that the connection may be dead."""
        shown.rewind()
        lines = self._client.tail_job_logs(job).__aiter__()
        last = time.monotonic()
        while True:
            following = asyncio.ensure_future(lines.__anext__())
            while not (await asyncio.wait({following}, timeout=QUIET_S))[0]:
                quiet_for = time.monotonic() - last
                ended = str((await asyncio.to_thread(self.info, job)).status.value) not in LIVE
                if ended or quiet_for > STALE_S:
                    following.cancel()
                    return
            try:
                shown.take(following.result())
            except StopAsyncIteration:
                return
            except UserError:
                raise
            except Exception as error:  # of aiohttp, of Ray, of the socket: all mean the same here
                raise Lost(_first_line(error)) from None
            last = time.monotonic()

    def _finish(self, job: str, details: Any, shown: _Shown) -> int:
        """The rest of the log and a last word; the exit status."""
        try:
            shown.rewind()
            shown.take(self.logs(job))
        except (Lost, UserError):  # the log was on a node that is gone: what was shown is what there is
            pass
        state = str(details.status.value)
        if state == "SUCCEEDED":
            say(f"job {job} succeeded")
            return 0
        code = INTERRUPTED if state == "STOPPED" else details.driver_exit_code or 1
        why = "" if state == "STOPPED" else f": {_last_line(details.message)}"
        say(f"job {job} {state.lower()}, exit status {code}{why}")
        return int(code)


class _Shown:
    """Writes what comes of a text once, though each new connection sends it from its start."""

    def __init__(self, write: Say) -> None:
        self._write, self._written, self._at = write, 0, 0

    def rewind(self) -> None:
        self._at = 0

    def take(self, text: str) -> None:
        fresh = text[max(0, self._written - self._at) :]
        self._at += len(text)
        if fresh:
            self._write(fresh)
            self._written = self._at


def _latest(base: str, states: dict[str, str]) -> tuple[str, str | None]:
    """The highest number of a request's jobs and its state; none: it was never started."""
    numbers = [int(m[1] or 1) for name in states if (m := re.fullmatch(rf"{re.escape(base)}(?:-(\d+))?", name))]
    if not numbers:
        return base, None
    name = base if max(numbers) == 1 else f"{base}-{max(numbers)}"
    return name, states[name]


def _next(base: str, job: str) -> str:
    number = int(job.removeprefix(base).lstrip("-") or 1)
    return f"{base}-{number + 1}"


def _client_class() -> type:
    from ray.job_submission import JobSubmissionClient

    for name in ("job.sdk", "dashboard_sdk"):  # say that a package goes up and that a socket closes
        logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)

    class Client(JobSubmissionClient):
        """Ray's own waits for ever for an answer."""

        def _do_request(self, *args: Any, **kwargs: Any) -> Any:
            kwargs.setdefault("timeout", TIMEOUT_S)
            return super()._do_request(*args, **kwargs)

    return Client


@contextmanager
def _without_variables() -> Iterator[None]:
    """Ray prefers these to the address that it is given."""
    kept = {name: os.environ.pop(name) for name in ADDRESS_VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


@contextmanager
def _told(address: str) -> Iterator[None]:
    """Ray's and requests' errors as ours."""
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError:
        raise UserError(
            f"{address} asks for a token, and this is none or another one: set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN_PATH=FILE (readable for you only)"
        ) from None
    except (requests.exceptions.SSLError, requests.exceptions.InvalidURL) as error:
        raise UserError(f"{address}: {_first_line(error)}; give the certificates to trust by --ca FILE") from None
    except (requests.exceptions.RequestException, ConnectionError, OSError) as error:
        raise Lost(_first_line(error)) from None
    except RuntimeError as error:
        text = str(error)
        if "status code 404" in text:
            raise UserError(
                f"{address} does not know this job (any more): a restarted head has lost its jobs; submit it "
                "again, it continues where its run folder stands"
            ) from None
        if "status code 5" in text and "already exists" not in text:
            raise Lost(_first_line(error)) from None
        raise


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _last_line(text: str | None) -> str:
    lines = [line for line in (text or "").strip().splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else "no message"
