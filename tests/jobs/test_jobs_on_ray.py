"""``megu submit`` and ``megu jobs`` against a real head with its job server: one cluster and a few short jobs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from ray_head import Cable, Head, head

from megu_dist.jobs import client as client_module
from megu_dist.jobs.client import Cluster

Run = Callable[..., tuple[int, str]]


def forget_token() -> None:
    """Ray keeps the token that a process has used first; `megu submit` is a process of its own, these tests are not."""
    from ray._raylet import AuthenticationTokenLoader

    AuthenticationTokenLoader.instance().reset_cache()


@pytest.fixture(scope="module")
def ray_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    folder = tmp_path_factory.mktemp("j")
    (folder / "key").write_text("sk-very-secret\n")
    with pytest.MonkeyPatch.context() as patch, head(folder, {"NODE_KEY": "sk-of-the-node"}) as found:
        for name, value in found.environment.items():
            patch.setenv(name, value)
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")  # --address wins over Ray's variables
        forget_token()
        yield found
    forget_token()


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A verb that takes seconds."""
    return ["plan", "data=digits", "forget.classes=[three]", "--shared", str(tmp_path_factory.mktemp("shared"))]


@pytest.fixture(scope="module")
def run(ray_head: Head, run_megu: Callable[[list[str]], Any]) -> Run:
    """Exit status and output of ``megu WORDS`` on the head."""

    def call(*words: str) -> tuple[int, str]:
        done = run_megu([*words, "--address", ray_head.address])
        return done.code, done.output

    return call


@pytest.fixture(scope="module")
def done(run: Run, plan: list[str]) -> tuple[int, str]:
    """A finished ``megu submit plan``."""
    return run("submit", *plan)


def test_a_job_runs_the_packaged_code_and_returns_its_status(done: tuple[int, str]) -> None:
    code, output = done
    assert code == 0, output
    assert "forget concepts" in output
    assert "Running entrypoint for job megu-plan-" in output
    assert "Traceback" not in output


def test_the_same_request_is_followed_and_not_started_again(run: Run, plan: list[str], done: tuple[int, str]) -> None:
    (job,) = set(re.findall(r"started job (\S+)", done[1]))
    code, output = run("submit", *plan)
    assert code == 0
    assert f"job {job} is this request already" in output
    assert "forget concepts" in output
    listed = run("jobs", "list")[1]
    assert listed.count("megu-plan-") == 1
    assert "SUCCEEDED" in listed


def test_what_was_sent_is_what_the_dry_run_printed(
    run: Run, plan: list[str], ray_head: Head, done: tuple[int, str]
) -> None:
    told = json.loads(run("submit", *plan, "--dry-run")[1])["request"]
    sent = Cluster(ray_head.address).info(told["submission_id"])
    assert sent.entrypoint == told["entrypoint"]
    assert sent.metadata == told["metadata"]
    assert sent.runtime_env["working_dir"] == told["runtime_env"]["working_dir"]


def test_a_failed_job_returns_its_status_and_is_started_again_under_a_number(run: Run, plan: list[str]) -> None:
    words = [word.replace("three", "nosuch") for word in plan]
    code, output = run("submit", *words)
    assert code == 2, output
    assert "the data has no class 'nosuch'" in output
    (first,) = set(re.findall(r"started job (\S+)", output))
    code, output = run("submit", *words, "--no-wait")
    assert code == 0
    assert f"started job {first}-2" in output


def test_jobs_end_by_stop_and_megu_tells_which_there_are(run: Run, ray_head: Head) -> None:
    cluster = Cluster(ray_head.address)
    cluster._client.submit_job(entrypoint="echo begun; sleep 100", submission_id="sleeper")
    assert "sleeper" in run("jobs", "list", "--all")[1]
    assert "sleeper" not in run("jobs", "list")[1]
    assert run("jobs", "stop", "sleeper")[0] == 0
    assert run("jobs", "logs", "sleeper", "--follow")[0] == 130
    assert "has stopped already" in run("jobs", "stop", "sleeper")[1]
    code, output = run("jobs", "logs", "sleeperr")
    assert code == 2
    assert "did you mean 'sleeper'" in output


def test_a_lost_connection_is_taken_up_without_losing_or_repeating_a_line(ray_head: Head) -> None:
    cable = Cable(int(ray_head.address.rpartition(":")[2]))
    far = Cluster(f"http://127.0.0.1:{cable.port}")
    job = far._client.submit_job(entrypoint="for i in $(seq 1 60); do echo line $i; sleep 0.1; done; exit 7")
    got: list[str] = []
    codes: list[int] = []
    follower = threading.Thread(target=lambda: codes.append(far.follow(job, 60, got.append)))
    follower.start()
    end = time.monotonic() + 60
    while "line 5\n" not in "".join(got) and time.monotonic() < end:
        time.sleep(0.1)
    before = cable.accepted
    cable.pull()
    time.sleep(2)
    cable.plug()
    follower.join(60)
    cable.close()
    assert codes == [7]
    assert cable.accepted > before
    assert re.findall(r"^line (\d+)$", "".join(got), re.MULTILINE) == [str(i) for i in range(1, 61)]


def test_a_cluster_that_stays_away_is_told_in_the_end(ray_head: Head) -> None:
    cable = Cable(int(ray_head.address.rpartition(":")[2]))
    far = Cluster(f"http://127.0.0.1:{cable.port}")
    cable.pull()
    with pytest.raises(client_module.UserError, match="megu jobs logs some-job --follow"):
        far.follow("some-job", 1.0, lambda _: None)
    cable.close()


def test_secrets_reach_the_job_and_are_stored_nowhere(run: Run, plan: list[str], ray_head: Head) -> None:
    file = Path(ray_head.environment["RAY_AUTH_TOKEN_PATH"]).parent / "key"
    code, output = run("submit", *plan, "--secret", "NODE_KEY", "--secret", f"FILE_KEY={file}")
    assert code == 0, output  # the job refuses to run without them
    (job,) = re.findall(r"started job (\S+)", output)
    stored = repr(Cluster(ray_head.address).info(job))
    assert "FILE_KEY" in stored
    assert "sk-very-secret" not in stored + output
    assert "sk-of-the-node" not in stored + output
    code, output = run("submit", *plan, "--secret", "MISSING_KEY")
    assert code == 2
    assert "secret MISSING_KEY" in output


def test_workers_have_the_packaged_code_and_secrets_from_files(ray_head: Head, run: Run, plan: list[str]) -> None:
    file = Path(ray_head.environment["RAY_AUTH_TOKEN_PATH"]).parent / "key"
    told = json.loads(run("submit", *plan, "--secret", f"FILE_KEY={file}", "--dry-run")[1])["request"]
    code = (
        "import os, ray, megu_dist; ray.init(); f = ray.remote(lambda: (__import__('megu_dist').__file__, "
        "len(os.environ['FILE_KEY']))); print('worker', *ray.get(f.remote()))"
    )
    cluster = Cluster(ray_head.address)
    job = cluster._client.submit_job(entrypoint=f'python -c "{code}"', runtime_env=told["runtime_env"])
    got: list[str] = []
    assert cluster.follow(job, 60, got.append) == 0, "".join(got)
    (found,) = re.findall(r"^worker (\S+) (\d+)$", "".join(got), re.MULTILINE)
    assert "_ray_pkg_" in found[0]
    assert found[1] == str(len("sk-very-secret"))


def test_without_the_token_nobody_gets_in(ray_head: Head) -> None:
    with pytest.raises(OSError, match=r"401|403"):
        urlopen(f"{ray_head.address}/api/jobs/")
    words = [sys.executable, "-m", "megu_dist.cli", "jobs", "list", "--address", ray_head.address]
    done = subprocess.run(
        words, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", "RAY_AUTH_MODE": "disabled"}
    )
    assert done.returncode == 2, done.stderr
    assert "asks for a token" in done.stderr
