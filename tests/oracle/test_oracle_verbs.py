"""The verbs of the oracle as users type them: fill, show, compare, serve, stop."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import thousand
import tiny_wordnet
from stored_ratings import asking, job, remember

from megu_dist.config.compose import load
from megu_dist.errors import UserError
from megu_dist.oracle import cluster_has_serve, compare, keep, serve
from megu_dist.oracle.backends.embedding import EmbeddingSettings
from megu_dist.oracle.backends.uniform import UniformSettings
from megu_dist.oracle.transition import from_ratings
from megu_dist.report import figures, style
from megu_dist.report.load import Transition

NAMES = ["cat", "dog", "T-shirt/top", "ankle boot", "garment", "animal"]
ONE = {"dog": 9.0, "T-shirt/top": 1.0, "ankle boot": 2.0, "garment": 3.0, "animal": 8.0}
# A cluster's token: said to both sides, as only one of them looks for a token that some earlier Ray has left.
AUTHENTICATION = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 2}
OTHER = {"dog": 8.0, "T-shirt/top": 1.0, "ankle boot": 3.0, "garment": 2.0, "animal": 9.0}


def flat(text: str) -> str:
    """Without line breaks and the lines of tables."""
    return " ".join(re.sub(r"[│┃┏┓┗┛┡┩┳┻╇┴┬├┤┼─━┌┐└┘]", " ", text).split())


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The words of a request for the cat, among six classes."""
    folder = tmp_path_factory.mktemp("verbs")
    thousand.write(folder / "train.parquet", NAMES)
    thousand.write(folder / "test.parquet", NAMES, 1)
    data = ["data=parquet", f"data.path={folder / 'train.parquet'}", f"data.test_path={folder / 'test.parquet'}"]
    return [*data, "forget.classes=[cat]", f"run.dir={folder / 'runs'}"]


def runs_of(words: list[str]) -> Path:
    return Path(next(word for word in words if word.startswith("run.dir="))[len("run.dir=") :])


@pytest.fixture(scope="module")
def filled(ray_local: None, words: list[str], run_megu: Any) -> dict[str, tuple[Path, str]]:
    """Two runs by two oracles that have answered before: name → folder and output of the fill."""
    found = {}
    for name, opinion in (("one", ONE), ("other", OTHER)):
        settings = asking(model=name)
        remember(
            runs_of(words) / "ratings", settings, job(NAMES, [0]), lambda a, b, _, o=opinion: o[b if a == "cat" else a]
        )  # type: ignore[misc]
        given = ["oracle=openai", f"oracle.model={name}", f"oracle.base_url={settings.base_url}", "oracle.images=0"]
        done = run_megu(["oracle", "fill", *words, *given, f"run.name={name}"])
        assert done.code == 0, done.output
        found[name] = (runs_of(words) / name, done.output)
    return found


# --- fill and show ----------------------------------------------------------------------------------------------------


def test_fill_says_what_it_found_and_what_it_took(filled: dict[str, tuple[Path, str]]) -> None:
    folder, output = filled["one"]
    text = flat(output)
    assert "openai:one@127.0.0.1:9/v1, τ = 1" in text
    assert "pairs 5, calls 0, reused 10, prompt tokens 0, answer tokens 0" in text
    weight = np.exp(9.0) / np.exp(list(ONE.values())).sum()
    assert f"dog 9.00, {weight:.3f}" in text
    assert (
        text.index("dog 9.00") < text.index("animal 8.00") < text.index("garment 3.00") < text.index("T-shirt/top 1.00")
    )
    assert f"transition matrix: {folder / 'transition.json'}" in output
    assert f"heatmap: {folder / 'figures' / 'transition.png'}" in output


def test_show_of_a_folder_and_of_a_run_name(
    filled: dict[str, tuple[Path, str]], words: list[str], run_megu: Any
) -> None:
    folder, output = filled["one"]
    (folder / "figures" / "transition.png").unlink()
    for given in ([str(folder)], [f"run.dir={folder.parent}", "run.name=one"]):
        done = run_megu(["oracle", "show", *given])
        assert done.code == 0, done.output
        assert "dog 9.00" in flat(done.output)
        assert flat(done.output)[: flat(done.output).index("heatmap")] in flat(output)
        assert (folder / "figures" / "transition.png").read_bytes().startswith(b"\x89PNG")


def test_fill_again_is_already_done(filled: dict[str, tuple[Path, str]], words: list[str], run_megu: Any) -> None:
    given = ["oracle=openai", "oracle.model=one", f"oracle.base_url={asking().base_url}", "oracle.images=0"]
    done = run_megu(["oracle", *words, *given, "run.name=one"])  # `megu oracle` is `megu oracle fill`
    assert done.code == 0, done.output
    assert "oracle: already done" in done.output
    assert "dog 9.00" in flat(done.output)


# --- compare ----------------------------------------------------------------------------------------------------------


def without_wordnet(monkeypatch: pytest.MonkeyPatch) -> None:
    import nltk

    monkeypatch.delenv("WORDNET_DIR", raising=False)
    monkeypatch.setattr(compare, "WORDNET_FOLDERS", ())
    monkeypatch.setattr(nltk.data, "path", [])


def test_compare_two_runs(filled: dict[str, tuple[Path, str]], run_megu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    without_wordnet(monkeypatch)
    done = run_megu(["oracle", "compare", str(filled["one"][0]), str(filled["other"][0] / "transition.json")])
    assert done.code == 0, done.output
    text = flat(done.output)
    # Ranks 5 1 2 3 4 and 4 1 3 2 5: four differences of one. The nearest differ; the three nearest share two.
    rho = 1 - 6 * 4 / (5 * 24)
    assert "openai (one) / openai (other)" in re.sub(r" mean of 1( \S+){4}", "", text)
    assert f"mean of 1 {rho:.2f} 0.00 0.67 -" in text
    assert f"cat 5 {rho:.2f} 0.00 0.67 -" in text
    assert text.count("skipped: there is no WordNet data") == 2
    assert "apt install wordnet-base" in text


def test_compare_with_wordnet(
    filled: dict[str, tuple[Path, str]], run_megu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    without_wordnet(monkeypatch)
    monkeypatch.setenv("WORDNET_DIR", str(tiny_wordnet.write(tmp_path / "dict")))
    done = run_megu(["oracle", "compare", str(filled["one"][0]), str(filled["other"][0])])
    assert done.code == 0, done.output
    text = flat(done.output)
    assert "skipped" not in text
    # Edges from the cat: animal 2, dog 4, ankle boot and garment 5, T-shirt 6. The rating of `other` has that order.
    from scipy.stats import spearmanr

    distance = dict(zip(NAMES[1:], [4, 6, 5, 5, 2], strict=True))
    rhos = [spearmanr([o[n] for n in NAMES[1:]], [-distance[n] for n in NAMES[1:]]).statistic for o in (ONE, OTHER)]
    assert [float(found) for found in re.findall(r"mean of 1 (\S+)", text)[1:]] == [round(rho, 2) for rho in rhos]
    assert text.count("WordNet") == 2


# --- heatmap ----------------------------------------------------------------------------------------------------------


def heatmap(names: list[str], labels: list[int]) -> tuple[Any, np.ndarray]:
    ratings = np.random.default_rng(0).random((len(labels), len(names))) * 10
    matrix = from_ratings(ratings, labels, 0.5, True)
    return figures.transition_heatmap(Transition(tuple(names[i] for i in labels), tuple(names), matrix, 0.5)), matrix


def overlapping(figure: Any) -> list[tuple[str, str]]:
    """Pairs of texts of a figure that cover each other when it is drawn."""
    figure.canvas.draw()
    axes = figure.axes[0]
    texts = [t for t in [*axes.texts, *axes.get_xticklabels(), *axes.get_yticklabels()] if t.get_text()]
    boxes = [(t.get_text(), t.get_window_extent()) for t in texts if not t.get_rotation()]
    return [(one, other) for (one, a), (other, b) in itertools.combinations(boxes, 2) if a.overlaps(b)]


def test_the_heatmap_of_ten_classes_shows_every_number() -> None:
    names = [f"class {i}" for i in range(10)]
    with style.house_style():
        figure, matrix = heatmap(names, list(range(10)))
        assert overlapping(figure) == []
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == names
    assert len(axes.texts) == 100
    assert {t.get_text() for t in axes.texts} > {"0", "<.01", f"{matrix.max():.2f}".removeprefix("0")}


@pytest.mark.parametrize("rows", [1, 10, 40])
def test_the_heatmap_of_a_thousand_classes_names_the_nearest_of_each_row(rows: int) -> None:
    names, labels = thousand.names(), [25 * i for i in range(rows)]
    with style.house_style():
        figure, matrix = heatmap(names, labels)
        assert overlapping(figure) == []
        width, height = figure.get_size_inches()
    assert width < 20
    assert height < 20
    shown = [" ".join(t.get_text().split()) for t in figure.axes[0].texts]
    for row in range(min(rows, figures.MAX_ROWS)):
        nearest = [int(j) for j in np.argsort(-matrix[row])[: figures.NEAREST]]
        for j in nearest:
            assert f"{names[j]} {matrix[row, j]:.2f}".replace(" 0.", " .") in shown
        assert f"{1 - matrix[row, nearest].sum():.2f}".removeprefix("0") in shown
    assert ("30 of 40 rows" in figure.axes[0].get_title(loc="left")) == (rows == 40)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_bad_input_ends_with_status_two_and_one_sentence(
    run_megu: Any, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "transition.json").write_text('{"rows": []}')
    (tmp_path / "empty").mkdir()
    runs = f"run.dir={tmp_path / 'none'}"
    for given, part in (
        (["show", str(tmp_path / "nowhere")], "holds no transition.json"),
        (["show", str(tmp_path / "broken")], "is not a transition matrix"),
        (["show", runs, "run.name=x"], "holds no transition.json"),
        (["compare", runs], "give two runs"),
        (["compare", str(tmp_path / "empty"), runs], "give two runs"),
        (["compare", str(tmp_path / "empty"), str(tmp_path / "broken")], "there is no transition.json"),
        (["compare", str(tmp_path / "broken"), str(tmp_path / "empty")], "is not a transition matrix"),
        (["stop", runs], "run.address is not set"),
        (["serve", runs, "oracle=openai"], "oracle.model is not set"),
        (
            ["serve", runs, "oracle=openai", "oracle.model=m", "oracle.base_url=http://a:b@c/v1"],
            "oracle.base_url holds",
        ),
        (["serve", runs, "oracle.path=/nowhere"], "oracle.path=/nowhere"),
        (["fil", *words], "'fill'"),
        (["fill", *words, "oracle.descriptions=/nowhere.json"], "oracle.descriptions=/nowhere.json"),
        (["fill", *words, "oracle=openai", "oracle.model=m", "oracle.base_url=x"], "oracle.base_url=x"),
        (["fill", *words, "oracle.on_degenerate=fall"], "'fallback'"),
        (["fill", *words, "oracle.on_degenerate=fallback", "oracle.fallback=uniforn"], "'uniform'"),
        (["fill", *words[:3], runs, "forget.classes=[cta]"], "'cat'"),
    ):
        done = run_megu(["oracle", *given])
        assert done.code == 2, (given, done.output)
        assert part in flat(done.output), (given, done.output)
        assert done.output.startswith("megu: ")
        assert "Traceback" not in done.output
    assert [path for path in (tmp_path / "none").rglob("*")] == []


# --- serve and stop ---------------------------------------------------------------------------------------------------


@pytest.fixture
def connected(ray_local: None) -> Iterator[Any]:
    """Settings of a job on a cluster (here the Ray of the tests), with Serve running."""
    from ray import serve as ray_serve

    ray_serve.start(proxy_location="Disabled")
    yield load(["data=digits", "oracle=uniform", "run.address=auto"]).settings
    ray_serve.shutdown()


def running() -> set[str]:
    from ray import serve as ray_serve

    return set(ray_serve.status().applications)


def test_stop_leaves_what_it_did_not_start(connected: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from ray import serve as ray_serve

    name = serve.app_name(connected.oracle)
    fills_own, others = f"{name}-0123abcd", "somebody-elses"
    for app in (fills_own, others):
        ray_serve.run(serve.application(UniformSettings(name="uniform")), name=app, route_prefix=None)
    keep.keep(connected)
    assert running() == {name, fills_own, others}
    assert f"{name} serves uniform" in capsys.readouterr().out
    before = ray_serve.status().applications[name].last_deployed_time_s
    keep.keep(connected)  # a second time: nothing is started anew
    assert ray_serve.status().applications[name].last_deployed_time_s == before
    assert keep.stop(connected) == [name]
    assert running() == {fills_own, others}
    assert keep.stop(connected) == []


def test_an_oracle_that_does_not_come_up_leaves_nothing_behind(connected: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')  # no weights
    connected.oracle = EmbeddingSettings(name="embedding", path=str(tmp_path))
    with pytest.raises(UserError, match="does not start"):
        keep.keep(connected)
    assert running() == set()


def test_stop_without_serve(ray_local: None) -> None:
    assert not cluster_has_serve()
    assert keep.stop(load(["data=digits", "run.address=auto"]).settings) == []


@pytest.fixture
def cluster() -> Iterator[tuple[str, Path]]:
    """A Ray head node of its own: its address, and its folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="megu-ray-", dir="/tmp"))  # sockets in there: the path must be short
    environment = {**os.environ, **AUTHENTICATION, "RAY_enable_worker_prestart": "0"}
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}"]
    command += [f"--temp-dir={folder}", "--num-cpus=8", "--include-dashboard=false", "--disable-usage-stats"]
    command += [f"--object-store-memory={300 << 20}"]
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            end = time.monotonic() + 90
            while "Ray runtime started" not in (folder / "head.log").read_text():
                assert head.poll() is None, (folder / "head.log").read_text()
                assert time.monotonic() < end
                time.sleep(0.2)
            yield f"127.0.0.1:{port}", folder
        finally:
            family = [head, *psutil.Process(head.pid).children(recursive=True)]
            for process in family:  # asked politely, they take half a minute
                process.kill()
            head.wait(30)
            psutil.wait_procs(family[1:], timeout=30)
            shutil.rmtree(folder, ignore_errors=True)


def start(address: str, *given: str, **environment: str) -> subprocess.Popen[str]:
    """``megu oracle …`` as a process of its own, with what it prints on a pipe."""
    command = [
        sys.executable,
        "-m",
        "megu_dist.cli",
        "oracle",
        *given,
        *([f"run.address={address}"] if address else []),
    ]
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_A")}  # address, authentication
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**own, **environment}
    )


@pytest.mark.slow
def test_an_oracle_on_a_cluster_serves_several_jobs_until_it_is_stopped(
    cluster: tuple[str, Path], words: list[str], tmp_path: Path
) -> None:
    address, folder = cluster

    def run(*given: str) -> str:
        process = start(address, *given, **AUTHENTICATION)
        output = process.communicate(timeout=200)[0]
        assert process.returncode == 0, output
        return output

    def replicas() -> list[Path]:
        return list((folder / "session_latest" / "logs" / "serve").glob("replica_*"))

    served = run("serve", "oracle=embedding", f"run.dir={tmp_path}")
    assert f":{address.split(':')[1]} use it" in served
    assert "it stays until `megu oracle stop`" in served
    assert len(replicas()) == 1
    each = [["fill", *words, f"run.dir={tmp_path}", f"run.name={n}", f"forget.classes=[{n}]"] for n in ("cat", "dog")]
    jobs = [start(address, *given, **AUTHENTICATION) for given in each]
    outputs = [process.communicate(timeout=200)[0] for process in jobs]
    assert [process.returncode for process in jobs] == [0, 0], outputs
    assert len(replicas()) == 1  # both used the one that was there
    found = [json.loads((tmp_path / name / "transition.json").read_text()) for name in ("cat", "dog")]
    assert found[0]["ratings"][0][1] == pytest.approx(found[1]["ratings"][0][0], abs=1e-4)
    assert 9 <= sum(data["calls"] for data in found) <= 10  # they share the question about cat and dog
    assert "stopped: megu-oracle-embedding-" in run("stop")
    assert "no oracle of megu is running there" in run("stop")


@pytest.mark.slow
def test_an_oracle_of_its_own_ray_serves_those_who_do_as_it_says(words: list[str], tmp_path: Path) -> None:
    server = start("", "serve", "oracle=uniform", f"run.dir={tmp_path}")
    try:
        assert server.stdout is not None
        said = next(line for line in server.stdout if "use it" in line)
        found = re.search(r"run\.address=(\S+) use it, with (\w+)=(\w+) in their environment", said)
        assert found is not None, said
        job = start(
            found[1], "fill", "oracle=uniform", *words, f"run.dir={tmp_path}", "run.name=r", **{found[2]: found[3]}
        )
        output = job.communicate(timeout=200)[0]
        assert job.returncode == 0, output
        assert json.loads((tmp_path / "r" / "transition.json").read_text())["calls"] == 5
    finally:
        server.terminate()
    rest = server.communicate(timeout=60)[0]
    assert server.returncode == 130, rest
