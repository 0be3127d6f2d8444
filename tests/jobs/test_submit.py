"""``megu submit`` before anything is sent: what is refused, what would be sent, what it is called. No Ray is started."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megu_dist import __version__
from megu_dist.cli import VERBS, main
from megu_dist.config.compose import load
from megu_dist.errors import UserError
from megu_dist.jobs import options as opts
from megu_dist.jobs import package as pack
from megu_dist.jobs.client import _latest, _next, _Shown
from megu_dist.jobs.inside import SECRETS, load_secrets
from megu_dist.jobs.request import Request, build

REQUEST = ["unlearn", "data=digits", "model.path=/s/model", "forget.classes=[three]", "run.dir=/s/runs"]


@pytest.fixture(autouse=True)
def no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in opts.ADDRESS_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def request_of(*words: str) -> Request:
    options, rest = opts.read(words, opts.SUBMIT)
    return build(rest, options, VERBS)


def entry(request: Request) -> list[str]:
    import shlex

    words = shlex.split(request.body["entrypoint"])
    return words[words.index("--") + 1 :]


def settings(request: Request) -> Any:
    verb, *words = entry(request)
    return load(words, VERBS[verb].defaults).settings


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The sentence with which the words are refused: one, with exit status 2."""

    def call(*words: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main(["submit", *words, "--address", "http://127.0.0.1:1"])  # whoever connects fails in another way
        out, err = capfd.readouterr()
        assert stop.value.code == 2
        assert err.startswith("megu: ")
        assert "Traceback" not in out + err
        return err

    return call


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "name the verb"),
        (["unlern", "data=digits"], "did you mean 'unlearn'"),
        (["oracle", "show", "x"], "cannot submit 'oracle show'"),
        ([*REQUEST, "train.epoch=3"], "train.epochs"),
        ([*REQUEST, "train.epochs=0"], "at least 1"),
        ([*REQUEST, "forget.classes=[]"], "forget.classes is empty"),
        (["unlearn", "data=digits", "forget.classes=[three]", "run.dir=/s"], "model.path is not set"),
        (
            [*REQUEST, "method=unsir", "forget.scenario=random", "forget.fraction=0.1"],
            "method=unsir",
        ),
        ([*REQUEST, "run.address=10.0.0.1:6379"], "run.address"),
        ([*REQUEST, "--num-gpu", "2"], "--num-gpus"),
        ([*REQUEST, "--num-gpus", "two"], "whole number"),
        ([*REQUEST, "--num-gpus", "0"], "at least 1"),
        ([*REQUEST, "--num-gpus", "2", "train.num_workers=3"], "drop one"),
        ([*REQUEST, "--code", "wheel"], "package, installed"),
        ([*REQUEST, "--working-dir", "/no/such"], "no such folder"),
        ([*REQUEST, "--exclude", "*.png"], "--working-dir"),
        ([*REQUEST, "--entrypoint-resources", "head"], "NAME=AMOUNT"),
        ([*REQUEST, "data.path=s3://AKIA:abc@bucket/x"], "data.path: holds a password"),
        (["benchmark", "experiment=benchmark_digits", "run.dir=/s"], "benchmark.runners=0"),
        (["sweep", "experiment=sensitivity_noise", "model.path=/s/m", "run.dir=/s"], "how many trials may run"),
    ],
)
def test_bad_requests_are_refused_here(refused: Callable[..., str], words: list[str], part: str) -> None:
    assert part in refused(*words)


@pytest.mark.parametrize(
    ("address", "part"),
    [
        ("127.0.0.1:8265", "URL"),
        ("ray://head:10001", "URL"),
        ("http://me:pw@head:8265", "token"),
        ("http://127.0.0.1:1", "no answer"),
    ],
)
def test_bad_addresses_are_refused(capfd: pytest.CaptureFixture[str], address: str, part: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["jobs", "list", "--address", address])
    err = capfd.readouterr().err
    assert stop.value.code == 2
    assert part in err
    assert "pw@" not in err or "me:pw" not in err


@pytest.mark.parametrize(
    ("word", "part"),
    [
        ("run.dir=runs", "run.dir=/shared/runs"),
        ("model.path=runs/original/model", "--shared"),
        ('data.cache_dir="~/cache"', "another folder on the cluster"),
        ("run.dir=s3://bucket/runs", "not a URI"),
        ("report.compare=[runs/other]", "report.compare"),
    ],
)
def test_paths_that_the_cluster_does_not_see_are_refused(refused: Callable[..., str], word: str, part: str) -> None:
    assert part in refused(*REQUEST, word)


def test_relative_paths_are_below_the_shared_folder() -> None:
    words = [
        "unlearn",
        "data=digits",
        "model.path=runs/original/model",
        "forget.classes=[three]",
        "report.compare=[runs/a]",
    ]
    s = settings(request_of(*words, "--shared", "/mnt/team"))
    assert s.model.path == "/mnt/team/runs/original/model"
    assert s.run.dir == "/mnt/team/runs"
    assert s.report.compare == ["/mnt/team/runs/a"]
    assert s.data.cache_dir == "/mnt/team/runs/.cache"  # embedded data are unpacked where every node can read them


def test_hub_ids_and_uris_stay() -> None:
    words = ["data=parquet", "data.path=s3://bucket/train", "model=transformers", "model.path=google/vit-base"]
    s = settings(request_of("unlearn", *words, "forget.classes=[cat]", "run.dir=/s"))
    assert s.model.path == "google/vit-base"
    assert s.data.path == "s3://bucket/train"


def test_small_input_files_travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("it's a list.txt").write_text("train/1\n")
    words = [*REQUEST[:3], "run.dir=/s", "forget.scenario=ids", 'forget.ids_file="it\'s a list.txt"']
    request = request_of(*words)
    name = settings(request).forget.ids_file
    assert request.package is not None
    assert zipfile.ZipFile(io.BytesIO(request.package.content)).read(name) == b"train/1\n"
    Path("it's a list.txt").write_text("train/2\n")
    assert request_of(*words).id != request.id


def test_gpus_asked_for_are_those_that_are_used() -> None:
    s = settings(request_of(*REQUEST, "--num-gpus", "4"))
    assert (s.train.num_workers, s.train.use_gpu) == (4, True)
    assert (s.perturb.num_actors, s.perturb.num_gpus) == (4, 1)
    assert (s.evaluate.num_actors, s.evaluate.num_gpus) == (4, 1)


def test_without_gpus_no_stage_takes_its_size_from_the_whole_cluster() -> None:
    s = settings(request_of(*REQUEST, "train.num_workers=3", "evaluate.num_actors=1"))
    assert (s.perturb.num_actors, s.evaluate.num_actors) == (3, 1)


def test_reading_is_bounded_by_the_cpus_asked_for() -> None:
    from megu_dist.data.stream import LOCAL_CORES

    assert request_of(*REQUEST, "--num-cpus", "3").body["runtime_env"]["env_vars"] == {LOCAL_CORES: "3"}


def test_the_same_request_has_the_same_id_whatever_the_order() -> None:
    one, other = request_of(*REQUEST, "train.epochs=3"), request_of(REQUEST[0], "train.epochs=3", *REQUEST[:0:-1])
    assert one.id == other.id
    assert one.id.startswith("megu-unlearn-")
    assert request_of(*REQUEST, "train.epochs=4").id != one.id
    assert request_of(*REQUEST, "train.epochs=3", "--env", "A=1").id != one.id
    assert request_of(*REQUEST, "train.epochs=3", "--code", "installed").id != one.id


def test_installed_code_is_named_by_its_version() -> None:
    request = request_of(*REQUEST, "--code", "installed")
    assert request.package is None
    assert f"--version {__version__} --" in request.body["entrypoint"]
    assert "working_dir" not in request.body["runtime_env"]


def test_packaged_code_runs_by_itself(tmp_path: Path) -> None:
    """The package is what an installation would be: it runs where there is no checkout."""
    request = request_of(*REQUEST)
    assert request.package is not None
    zipfile.ZipFile(io.BytesIO(request.package.content)).extractall(tmp_path)
    words = [sys.executable, "-m", "megu_dist.jobs.inside", "--", "show-config", *entry(request)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert "- three" in done.stdout


def test_a_working_directory_travels_without_what_belongs_here(tmp_path: Path) -> None:
    for name in (
        "mine.py",
        "sub/data.csv",
        ".env",
        ".git/config",
        "__pycache__/x.pyc",
        "venv/pyvenv.cfg",
        "own/pyvenv.cfg",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    files = pack.folder(str(tmp_path), "--working-dir", ["*.csv"])
    assert sorted(files) == ["mine.py"]
    assert sorted(pack.folder(str(tmp_path), "--working-dir", [])) == ["mine.py", "sub/data.csv"]


def test_packages_of_the_same_files_are_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("1")
    first = pack.make({"a.py": tmp_path / "a.py"}, ())
    import os

    os.utime(tmp_path / "a.py", (1, 10**9))
    assert pack.make({"a.py": tmp_path / "a.py"}, ()).uri == first.uri


def test_too_large_a_package_is_refused_with_its_largest_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "LIMIT_MB", 1)
    (tmp_path / "weights.bin").write_bytes(bytes(2 << 20))
    with pytest.raises(UserError, match=r"weights\.bin, 2 MB"):
        request_of(*REQUEST, "--working-dir", str(tmp_path))


def test_secrets_are_named_and_never_shown(monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    request = request_of(*REQUEST, "--secret", "OPENAI_API_KEY", "--secret", "OTHER_TOKEN=/run/secrets/other")
    assert "sk-very-secret" not in request.shown("http://x")
    assert request.body["runtime_env"]["env_vars"] == {SECRETS: "OPENAI_API_KEY,OTHER_TOKEN=/run/secrets/other"}
    assert "sk-very-secret" not in refused(*REQUEST, "--secret", "OPENAI_API_KEY=sk-very-secret")
    assert "--secret" in refused(*REQUEST, "--env", "OPENAI_API_KEY=sk-very-secret")
    assert "set by megu" in refused(*REQUEST, "--env", "RAY_AUTH_MODE=disabled")
    assert "set by megu" in refused(*REQUEST, "--env", "RAY_DATA_AUTOLOAD_PICKLE_OBJECT_SCALAR=1")


def test_secret_files_become_variables_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_text("sk-1\n")
    monkeypatch.setenv(SECRETS, f"A_KEY={tmp_path / 'key'},GONE_KEY={tmp_path / 'gone'},THERE_KEY")
    monkeypatch.setenv("A_KEY", "")
    load_secrets()
    import os

    assert os.environ["A_KEY"] == "sk-1"
    assert "GONE_KEY" not in os.environ


def test_a_job_without_its_secret_or_version_ends_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    from megu_dist.jobs.inside import main as inside

    for words, variables in ((["--version", "9.9"], {}), ([], {SECRETS: "NOT_THERE_KEY"})):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as stop:
            inside([*words, "--", "list", "method"])
        assert stop.value.code == 2


def test_dry_run_prints_the_request_and_sends_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["submit", *REQUEST, "--entrypoint-num-cpus", "1", "--pip", "openai>=2", "--dry-run"])
    assert stop.value.code == 0
    told = json.loads(capfd.readouterr().out)
    request = request_of(*REQUEST, "--entrypoint-num-cpus", "1", "--pip", "openai>=2")
    assert told["request"] == {"submission_id": request.id, **request.body}
    assert told["request"]["entrypoint_num_cpus"] == 1
    assert told["request"]["runtime_env"]["pip"] == ["openai>=2"]
    assert "megu_dist/cli.py" in told["package"]["files"]


def test_values_cannot_leave_their_place_in_the_shells_command(tmp_path: Path) -> None:
    request = request_of(*REQUEST, f"forget.classes=['$(touch {tmp_path}/x); echo']")
    command = request.body["entrypoint"].replace("python -m megu_dist.jobs.inside", "printf '%s\\n'")
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert f"forget.classes=['$(touch {tmp_path}/x); echo']" in done.stdout.splitlines()
    assert not (tmp_path / "x").exists()


def test_failed_jobs_get_the_next_number() -> None:
    states = {"megu-a-1f": "FAILED", "megu-a-1f-2": "FAILED", "megu-a-1f-10": "STOPPED", "megu-a-1f0": "RUNNING"}
    assert _latest("megu-a-1f", states) == ("megu-a-1f-10", "STOPPED")
    assert _next("megu-a-1f", "megu-a-1f-10") == "megu-a-1f-11"
    assert _next("megu-a-1f", "megu-a-1f") == "megu-a-1f-2"
    assert _latest("megu-a-2e", states) == ("megu-a-2e", None)


def test_a_text_that_is_sent_again_is_written_once() -> None:
    got: list[str] = []
    shown = _Shown(got.append)
    for piece in ("ab", "c"):
        shown.take(piece)
    shown.rewind()
    for piece in ("a", "bcd", "e"):
        shown.take(piece)
    assert "".join(got) == "abcde"
