"""The verbs of the oracle as users type them: fill, show, compare."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import thousand
import tiny_wordnet
from stored_ratings import asking, job, remember

from megu_dist.oracle import compare
from megu_dist.oracle.transition import from_ratings
from megu_dist.report import figures, style
from megu_dist.report.load import Transition

NAMES = ["cat", "dog", "T-shirt/top", "ankle boot", "garment", "animal"]
ONE = {"dog": 9.0, "T-shirt/top": 1.0, "ankle boot": 2.0, "garment": 3.0, "animal": 8.0}
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
