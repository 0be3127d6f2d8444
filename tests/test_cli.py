"""Commands: what they print, what they refuse, with which exit status. Nothing here starts Ray."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from megu_dist.cli import VERBS, main, run_folder
from megu_dist.config.compose import load
from megu_dist.config.registry import components
from megu_dist.models.architectures.cifar_resnet import CifarResNet, CifarResNetSettings
from megu_dist.models.checkpoint import export

Run = Callable[..., tuple[int, str, str]]
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Exit status, stdout and stderr of a command that must not get as far as Ray."""
    import ray

    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("started Ray"))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)

    def call(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        out, err = capfd.readouterr()
        return int(stop.value.code or 0), out, err

    return call


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained networks: ``digits`` with the digits' labels, ``three`` with three, ``moved`` with two exchanged."""
    folder = tmp_path_factory.mktemp("models")
    moved = [DIGITS[1], DIGITS[0], *DIGITS[2:]]
    for name, labels in (("digits", DIGITS), ("three", ["a", "b", "c"]), ("moved", moved)):
        torch.manual_seed(0)
        settings = CifarResNetSettings(name="cifar_resnet", width=4, stage_blocks=[1], num_channels=1, image_size=8)
        export(CifarResNet(settings).build(labels), None, CifarResNet(settings).preprocess(), folder / name, None)
    return folder


@pytest.fixture
def unlearn(run: Run, models: Path, cache_dir: Path, tmp_path: Path) -> Run:
    """``megu unlearn`` of the class three of the digits, with the words given."""

    def call(*words: object) -> tuple[int, str, str]:
        given = [
            "data=digits",
            f"data.cache_dir={cache_dir}",
            f"run.dir={tmp_path / 'runs'}",
            f"model.path={models / 'digits'}",
        ]
        return run("unlearn", *given, "forget.classes=[three]", *words)

    return call


def refused(result: tuple[int, str, str], *parts: str) -> None:
    code, out, err = result
    assert code == 2, err
    assert err.startswith("megu: ")
    assert "Traceback" not in err + out
    for part in parts:
        assert part in err


def left_behind(folder: Path) -> list[Path]:
    return list(folder.rglob("*")) if folder.exists() else []


def test_help(run: Run) -> None:
    for words in (["--help"], ["-h"], ["help"], []):
        code, out, _ = run(*words)
        assert code == 0
        shown = [verb for verb in VERBS if verb != "oracle fill"]  # a sub-verb: `megu oracle --help` lists those
        assert all(f"  {verb} " in out for verb in [*shown, "list", "show-config"])


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_examples(run: Run, verb: str) -> None:
    for option in ("--help", "-h"):
        code, out, _ = run(verb, "data=digits", option)
        assert code == 0
        assert f"  megu {verb} " in out
        assert f"megu show-config {verb}" in out


def test_version(run: Run) -> None:
    from megu_dist import __version__

    assert run("--version")[:2] == (0, f"{__version__}\n")


def test_list(run: Run) -> None:
    code, out, _ = run("list")
    assert code == 0
    for kind in ("data", "model", "oracle", "method", "metric", "engine"):
        assert f"{kind}:" in out
        assert all(f"  {name}" in out for name in components(kind))
    assert "fashion_mnist_shirt" in out
    code, out, _ = run("list", "engine")
    assert "deepspeed" in out
    assert "data:" not in out
    refused(run("list", "engines"), "'engine'")


def test_show_config(run: Run, tmp_path: Path) -> None:
    import yaml

    code, out, _ = run("show-config", "train", "data=digits", f"run.dir={tmp_path}")
    assert code == 0
    shown = yaml.safe_load(out)
    assert (shown["data"]["name"], shown["train"]["epochs"]) == ("digits", 10)  # the verb's own defaults
    assert run("show-config", "unlearn")[1].count("epochs: 2") == 1
    assert run("show-config")[0] == 2
    assert run("show-config", "--help")[0] == 0
    refused(run("show-config", "unlearn", "data=digit"), "'digits'")
    assert not left_behind(tmp_path)


def test_unknown_words(run: Run) -> None:
    refused(run("unlaern"), "unknown verb 'unlaern'", "'unlearn'")
    refused(run("unlearn", "train.epoch=1"), "'train.epochs'")
    refused(run("unlearn", "--confg-dir", "x"), "--confg-dir", "'--config-dir'")
    refused(run("unlearn", "--config-dir"), "needs a folder")
    refused(run("unlearn", "train.epochs"), "key=value")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["model.path=null"], ["model.path is not set"]),
        (["model.path=/nowhere/model"], ["model.path=/nowhere/model", "no such folder"]),
        (["evaluate.retrained=/nowhere/model"], ["evaluate.retrained=/nowhere/model"]),
        (["forget.classes=[thre]"], ["'thre'", "'three'"]),
        (["forget.classes=[10]"], ["'10'"]),
        (["forget.classes=[]"], ["forget.classes is empty"]),
        (["forget.classes=[0,1,2,3,4,5,6,7,8,9]"], ["nothing would be retained"]),
        (["forget.scenario=random", "forget.fraction=1.0"], ["between 0 and 1"]),
        (["forget.scenario=random", "forget.count=1437"], ["nothing would be retained"]),
        (["forget.scenario=ids", "forget.ids_file=/nowhere/ids"], ["no such file"]),
        (["train.stop=calibrated"], ["train.stop=fixed"]),
        (["train.lr=0"], ["train.lr=0", "greater than 0"]),
        (["engine=ddp", "engine.zero_stage=1"], ["'engine.zero_stage=1'"]),
        (["report.compare=[/nowhere/run]"], ["/nowhere/run"]),
    ],
)
def test_bad_requests_are_refused_before_ray_starts(
    unlearn: Run, words: list[str], parts: list[str], tmp_path: Path
) -> None:
    refused(unlearn(*words), *parts)
    assert left_behind(tmp_path / "runs") == []


def test_an_empty_file_of_ids(unlearn: Run, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("# nobody asked\n")
    refused(unlearn("forget.scenario=ids", f"forget.ids_file={tmp_path / 'ids.txt'}"), "names no image")
    assert left_behind(tmp_path / "runs") == []


def test_models_that_do_not_fit(unlearn: Run, models: Path, tmp_path: Path) -> None:
    refused(unlearn(f"model.path={models / 'three'}"), "3 labels", "10 classes")
    refused(unlearn(f"model.path={models / 'moved'}"), "orders the classes otherwise", "'one'", "'zero'")
    refused(unlearn(f"evaluate.retrained={models / 'three'}"), "evaluate.retrained=", "3 labels")
    assert left_behind(tmp_path / "runs") == []


def test_a_missing_column(run: Run, models: Path, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, format="PNG")
    table = pa.table({"picture": pa.array([buffer.getvalue()] * 4, pa.binary()), "klass": [0, 1, 2, 0]})
    pq.write_table(table, tmp_path / "data.parquet")
    given = [
        "data=parquet",
        f"data.path={tmp_path / 'data.parquet'}",
        "data.test_fraction=0.25",
        f"run.dir={tmp_path / 'runs'}",
    ]
    given += [f"model.path={models / 'three'}", "forget.classes=[0]"]
    refused(run("unlearn", *given), "data.label_column", "klass")
    refused(run("unlearn", *given, "data.label_column=klas"), "no column 'klas'", "'klass'")
    refused(run("unlearn", *given, "data.label_column=klass", "data.image_column=img"), "no column 'img'")
    refused(run("unlearn", *given[:1], "data.path=/nowhere.parquet", *given[2:]), "/nowhere.parquet")
    assert left_behind(tmp_path / "runs") == []


def test_a_folder_that_was_there_stays(unlearn: Run, tmp_path: Path) -> None:
    kept = tmp_path / "runs" / "mine" / "notes.txt"
    kept.parent.mkdir(parents=True)
    kept.write_text("keep")
    refused(unlearn("run.name=mine", "forget.classes=[tree]"), "'three'")
    assert kept.read_text() == "keep"


def test_report_of_a_run_that_is_not_there(run: Run, tmp_path: Path) -> None:
    (tmp_path / "first-run").mkdir()
    refused(run("report", f"run.dir={tmp_path}", "run.name=first-rum"), "no run folder", "'first-run'")


def test_a_fault_goes_to_the_log(unlearn: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from megu_dist import pipeline

    def fail(*_: object) -> None:
        raise ZeroDivisionError("lost\nlast line")

    monkeypatch.setattr(pipeline, "unlearn", fail)
    monkeypatch.setattr("megu_dist.raysession.ray_session", lambda settings: __import__("contextlib").nullcontext())
    code, out, err = unlearn("run.name=faulty")
    log = tmp_path / "runs" / "faulty" / "log.txt"
    assert code == 1
    assert "ZeroDivisionError: last line" in err
    assert str(log) in err
    assert "Traceback" not in out + err
    assert "Traceback" in log.read_text()


def test_an_interrupt_is_resumable(unlearn: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from megu_dist import pipeline

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "unlearn", stop)
    monkeypatch.setattr("megu_dist.raysession.ray_session", lambda settings: __import__("contextlib").nullcontext())
    code, _, err = unlearn()
    assert code == 130
    assert "run the same command again" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("verb", "words", "expected"),
    [
        ("unlearn", ["data=digits", "forget.classes=[three, 4]"], "unlearn-digits-three-4-megu-embedding"),
        (
            "unlearn",
            ["forget.scenario=random", "forget.fraction=0.01"],
            "unlearn-fashion_mnist-random-0.01-megu-embedding",
        ),
        ("train", ["data=digits"], "original-digits"),
        ("train", ["data=digits", "exclude_forget=true", "forget.classes=[three]"], "retrained-digits-three"),
        ("unlearn", ["forget.classes=['T-shirt/top']"], "unlearn-fashion_mnist-T-shirt-top-megu-embedding"),
        ("unlearn", ["run.name=mine"], "mine"),
    ],
)
def test_run_folders_are_named_after_the_request(verb: str, words: list[str], expected: str, tmp_path: Path) -> None:
    composed = load([*words, f"run.dir={tmp_path}"], VERBS[verb].defaults)
    assert run_folder(verb, composed) == tmp_path.resolve() / expected


@pytest.mark.parametrize("words", [["list"], ["--help"], ["show-config", "unlearn"]])
def test_a_reader_that_goes_ends_the_command_quietly(words: list[str]) -> None:
    """``megu list | head -1``: here the reader is gone before the first word."""
    code = f"import sys; from megu_dist.cli import run; sys.stdin.read(1); sys.argv[1:] = {words!r}; run()"
    command = [sys.executable, "-c", code]
    running = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert running.stdin
    assert running.stdout
    assert running.stderr
    running.stdout.close()
    running.stdin.write(b"x")
    running.stdin.close()
    assert running.stderr.read() == b""
    running.stderr.close()
    assert running.wait(60) == 141


@pytest.mark.parametrize(("words", "status"), [(["list", "method"], 0), (["list", "methud"], 2)])
def test_the_command_ends_at_once_but_in_order(words: list[str], status: int) -> None:
    code = (
        "import atexit, sys\n"
        "from megu_dist.cli import run\n"
        "class Slow:\n"
        "  def __del__(self): print('taken down')\n"
        "kept = Slow()\n"
        "atexit.register(print, 'tidied up')\n"
        f"sys.argv[1:] = {words!r}\n"
        "run()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert done.stdout.endswith("tidied up\n")
    assert "taken down" not in done.stdout


@pytest.mark.parametrize("words", [None, ["--help"], ["unlearn", "--help"], ["list"], ["unlearn", "train.epoch=1"]])
def test_light_commands_import_nothing_heavy(words: list[str] | None) -> None:
    code = (
        "import sys, megu_dist\n"
        f"words = {words!r}\n"
        "if words is not None:\n"
        "  from megu_dist.cli import main\n"
        "  try: main(words)\n"
        "  except SystemExit: pass\n"
        "heavy = {'torch', 'ray', 'transformers', 'deepspeed', 'sklearn', 'matplotlib'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
