"""`megu analyze` on the digits: artefacts, numbers, the report's section, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from megu_dist.analysis.request import make_request
from megu_dist.config.schema import AnalyzeSettings

Run = Callable[[list[str]], Any]
MODELS = ["original", "unlearned", "retrained"]


@pytest.fixture(scope="module")
def words(digits_words: list[str], digits_model: Path, digits_retrained: Path, tmp_path_factory: Any) -> list[str]:
    runs = tmp_path_factory.mktemp("analyze")
    return [
        *digits_words,
        f"run.dir={runs}",
        f"model.path={digits_model}",
        f"evaluate.retrained={digits_retrained}",
        "forget.classes=[three]",
    ]


@pytest.fixture(scope="module")
def unlearned(words: list[str], run_small: Run) -> Path:
    """A run that forgot the threes, without an analysis yet."""
    tuning = ["train.epochs=2", "train.lr=0.02", "train.batch_size=64", "train.precision=fp32", "engine=ddp"]
    done = run_small(["unlearn", *words, *tuning, "perturb.steps=1", "run.name=three"])
    assert done.code == 0, done.output
    return Path(words[3].split("=", 1)[1]) / "three"


@pytest.fixture(scope="module")
def analysed(unlearned: Path, words: list[str], run_megu: Run) -> Path:
    """The same folder after ``megu analyze`` in it."""
    config = (unlearned / "config.yaml").read_text()
    assert "entangled" not in (unlearned / "report.html").read_text()
    done = run_megu(["analyze", *words, "run.name=three", "analyze.images_per_class=20"])
    assert done.code == 0, done.output
    assert "three" in done.output
    assert "Linear CKA" in done.output
    assert (unlearned / "config.yaml").read_text() == config
    return unlearned


def test_numbers(analysed: Path) -> None:
    data = json.loads((analysed / "analysis.json").read_text())
    assert (data["schema"], data["scenario"], data["targets"]) == (1, "class", ["three"])
    assert list(data["models"]) == MODELS
    assert set(data["images_per_class"].values()) == {20}
    near = data["neighbours"]["three"]
    transition = json.loads((analysed / "transition.json").read_text())
    order = np.argsort(-np.array(transition["transition"][0]))[:3]
    assert near == {"names": [transition["columns"][j] for j in order], "by": "transition"}
    for layers in data["models"].values():
        assert list(layers)[-1] == "penultimate"
        for found in layers.values():
            energy = found["energy"]["three"]
            assert energy["shared"] + energy["specific"] == pytest.approx(1, abs=1e-5)
            assert 0 < energy["own"] < energy["specific"] < 1
            assert energy["chance"] == pytest.approx(3 / found["width"], abs=1e-5)
            assert list(found["distance"]["three"]) == near["names"]
    assert set(data["cka"]) == {"original / unlearned", "original / retrained", "unlearned / retrained"}
    near_original = data["cka"]["original / unlearned"]["penultimate"]["all"]
    assert 0.3 < data["cka"]["original / retrained"]["penultimate"]["all"] < near_original < 1


def test_a_forgotten_class_is_less_apart(analysed: Path) -> None:
    """The retrained model never learnt to tell threes from the rest: less of their energy is their own direction."""
    models = json.loads((analysed / "analysis.json").read_text())["models"]
    own = {name: models[name]["penultimate"]["energy"]["three"]["own"] for name in MODELS}
    assert own["retrained"] < own["original"]
    assert own["unlearned"] < own["original"]


def test_the_map(analysed: Path) -> None:
    table = pq.read_table(analysed / "analysis" / "map.parquet")
    assert len(table) == 200
    assert table["id"].to_pandas().is_unique
    for model in MODELS:
        points = np.stack([table[f"{model}/x"].to_numpy(), table[f"{model}/y"].to_numpy()], 1)
        assert np.isfinite(points).all()
        assert points.std(0).min() > 0


def test_figures_and_report(analysed: Path) -> None:
    for name in ("energy", "distances", "similarity", "map"):
        image = np.asarray(Image.open(analysed / "analysis" / f"{name}.png").convert("L"))
        assert image.std() > 5
        assert (analysed / "figures" / f"analysis_{name}.png").is_file()
    html = (analysed / "report.html").read_text()
    assert "How entangled it is with its neighbours" in html
    assert html.startswith("<!DOCTYPE html>")
    assert "Accuracy per class" in html


def test_the_same_again_does_nothing(analysed: Path, words: list[str], run_megu: Run) -> None:
    done = run_megu(["analyze", *words, "run.name=three", "analyze.images_per_class=20"])
    assert done.code == 0, done.output
    assert "analyze: already done" in done.output


def test_an_analysis_of_another_model_is_not_shown(analysed: Path, words: list[str], run_megu: Run) -> None:
    file = analysed / "analysis.json"
    text = file.read_text()
    data = json.loads(text)
    data["fingerprints"]["unlearned"] = "of an earlier model"
    file.write_text(json.dumps(data))
    try:
        assert run_megu(["report", *words, "run.name=three"]).code == 0
        assert "How entangled" not in (analysed / "report.html").read_text()
    finally:
        file.write_text(text)
    assert run_megu(["report", *words, "run.name=three"]).code == 0
    assert "How entangled" in (analysed / "report.html").read_text()


def test_a_folder_of_its_own_and_two_classes(analysed: Path, words: list[str], run_megu: Run) -> None:
    own = [f"evaluate.unlearned={analysed / 'model'}", "forget.classes=[three,eight]", "analyze.max_classes=6"]
    done = run_megu(["analyze", *words, *own, "analyze.images_per_class=10", "run.name=apart"])
    assert done.code == 0, done.output
    data = json.loads((analysed.parent / "apart" / "analysis.json").read_text())
    assert data["targets"] == ["three", "eight"]
    assert len(data["classes"]) == 6
    assert {"three", "eight"} <= set(data["classes"])
    for found in data["neighbours"].values():
        assert found["by"] == "centroids"
        assert len(found["names"]) == 3
        assert not {"three", "eight"} & set(found["names"])
    assert not (analysed.parent / "apart" / "report.html").exists()


def test_fine_classes(words: list[str], run_small: Run, tmp_path: Path, cache_dir: Path) -> None:
    """With coarse labels the analysis speaks of fine classes, also of a model that knows only the coarse ones."""
    groups = {"low": ["zero", "one", "two", "three", "four"], "high": ["five", "six", "seven", "eight", "nine"]}
    (tmp_path / "groups.json").write_text(json.dumps(groups))
    data = ["data=digits", f"data.cache_dir={cache_dir}", f"run.dir={tmp_path}", f"data.coarse={tmp_path}/groups.json"]
    net = ["model.width=4", "model.stage_blocks=[1]", "model.num_channels=1", "model.image_size=8", "engine=ddp"]
    done = run_small(["train", *data, *net, "train.epochs=1", "run.name=coarse"])
    assert done.code == 0, done.output
    request = ["forget.scenario=subclass", "forget.classes=[three]", "analyze.images_per_class=5", "run.name=fine"]
    done = run_small(["analyze", *data, f"model.path={tmp_path}/coarse/model", *request])
    assert done.code == 0, done.output
    found = json.loads((tmp_path / "fine" / "analysis.json").read_text())
    assert len(found["classes"]) == 10
    assert found["targets"] == ["three"]
    assert found["cka"] == {}


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (["forget.scenario=random", "forget.fraction=0.1"], "forget.scenario=random names none; use class or subclass"),
        (["forget.classes=[thre]"], "'three'"),
        (["analyze.map=tsne"], "analyze.map=tsne"),
        (["analyze.neighbours=0"], "at least 1"),
        (["analyze.neighbors=2"], "'analyze.neighbours'"),
        (["evaluate.unlearned=/nowhere/model"], "evaluate.unlearned=/nowhere/model"),
        (["model.path=null"], "model.path is not set"),
    ],
)
def test_refusals(words: list[str], run_small: Run, more: list[str], part: str, tmp_path: Path) -> None:
    done = run_small(["analyze", *words, *more, f"run.dir={tmp_path}", "run.name=refused"])
    assert done.code == 2, done.output
    assert part in done.output
    assert "Traceback" not in done.output
    assert not list(tmp_path.iterdir())


def test_classes_that_t_weighs_come_first(tmp_path: Path) -> None:
    names = [f"class {i}" for i in range(100)]
    settings = AnalyzeSettings(max_classes=5)
    alone = make_request(names, [7], tmp_path, settings, 0)
    assert len(alone.classes) == 5
    assert 7 in alone.classes
    assert make_request(names, [7], tmp_path, settings, 1).classes != alone.classes
    weights = np.zeros(100)
    weights[[90, 91, 92, 93]] = [0.4, 0.3, 0.2, 0.1]
    data = {"rows": ["class 7"], "columns": names, "transition": [weights.tolist()]}
    (tmp_path / "transition.json").write_text(json.dumps(data))
    found = make_request(names, [7], tmp_path, settings, 0)
    assert found.classes == [7, 90, 91, 92, 93]
    assert found.neighbours(7, 2, np.zeros(100)) == ([90, 91], "transition")
