"""Forgetting a fine class inside a coarse label, on the digits: the whole command, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from megu_dist.config.compose import load
from megu_dist.data.base import Source
from megu_dist.data.open import open_source
from megu_dist.data.perturbed import PerturbedStore
from megu_dist.oracle.stage import prepare, remaining
from megu_dist.perturb.labels import label_distribution

Run = Callable[[list[str]], Any]
GROUPS = {
    "round": ["zero", "six", "nine"],
    "open": ["two", "three", "five"],
    "mixed": ["one", "four", "seven", "eight"],
}
NET = ["model.width=8", "model.stage_blocks=[1,1]", "model.num_channels=1", "model.image_size=8"]
TRAINING = ["train.epochs=6", "train.lr=0.1", "train.batch_size=32", "train.precision=fp32", "engine=ddp"]
TUNING = ["train.epochs=2", "train.lr=0.02", "train.batch_size=64", "train.precision=fp32", "engine=ddp"]
REQUEST = ["forget.scenario=subclass", "forget.classes=[three]"]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> list[str]:
    folder = tmp_path_factory.mktemp("subclass")
    (folder / "groups.json").write_text(json.dumps(GROUPS))
    return [
        "data=digits",
        f"data.cache_dir={cache_dir}",
        f"data.coarse={folder / 'groups.json'}",
        f"run.dir={folder / 'runs'}",
    ]


@pytest.fixture(scope="module")
def runs(words: list[str]) -> Path:
    return Path(words[-1].split("=", 1)[1])


@pytest.fixture(scope="module")
def models(ray_local: None, words: list[str], runs: Path, run_small: Run) -> list[str]:
    """The words that name the original and the retrained model; both learn the coarse labels."""
    for name, more in (("original", []), ("retrained", ["exclude_forget=true", *REQUEST])):
        done = run_small(["train", *words, *NET, *TRAINING, *more, f"run.name={name}"])
        assert done.code == 0, done.output
    return [f"model.path={runs / 'original' / 'model'}", f"evaluate.retrained={runs / 'retrained' / 'model'}"]


@pytest.fixture(scope="module")
def finished(models: list[str], words: list[str], runs: Path, run_small: Run) -> Path:
    noise = ["perturb.kappa=0.25", "perturb.steps=1", "perturb.draws=2"]
    done = run_small(["unlearn", *words, *models, *REQUEST, *TUNING, *noise, "run.name=three"])
    assert done.code == 0, done.output
    assert "Asked to forget three" in " ".join(done.output.split())
    return runs / "three"


def test_models_learn_coarse_labels(finished: Path, runs: Path) -> None:
    for folder in (runs / "original", runs / "retrained", finished):
        config = json.loads((folder / "model" / "config.json").read_text())
        assert [config["id2label"][str(label)] for label in range(3)] == list(GROUPS)


def test_the_forget_set_is_the_fine_class(finished: Path, digits: Source) -> None:
    table = pq.read_table(finished / "split" / "forget.parquet")
    labels = np.concatenate([digits.index(piece)["label"].to_numpy() for piece in digits.pieces("train")])
    assert table["row"].to_pylist() == np.flatnonzero(labels == 3).tolist()
    assert (set(table["fine"].to_pylist()), set(table["label"].to_pylist())) == ({3}, {1})
    manifest = json.loads((finished / "split" / "manifest.json").read_text())
    assert (manifest["scenario"], manifest["classes"], manifest["class_names"]) == ("subclass", ["three"], [*GROUPS])
    assert manifest["retain"] == (labels != 3).sum()


def test_the_row_of_t_is_the_fine_concepts(finished: Path) -> None:
    data = json.loads((finished / "transition.json").read_text())
    assert (data["rows"], data["columns"], data["row_labels"]) == (["three"], [*GROUPS], [3])
    (row,) = data["transition"]
    assert sum(row) == pytest.approx(1)
    assert min(row) > 0  # no column is the row's own: "open" still holds two and five
    assert all(0 <= rating <= 10 for rating in data["ratings"][0])
    assert data["calls"] == 3


def test_perturbing_labels_may_be_the_coarse_label(finished: Path) -> None:
    tables = [pq.read_table(file) for file in (finished / "perturbed").glob("*.parquet")]
    table = pa.concat_tables(tables)
    drawn = np.array(table["perturbing_label"].to_pylist())
    assert set(table["label"].to_pylist()) == {1}
    assert set(drawn.ravel().tolist()) == {0, 1, 2}


def test_a_probe_decides_how_often_the_coarse_label_is_kept(
    finished: Path, models: list[str], words: list[str], runs: Path, run_small: Run
) -> None:
    """The model was taught that threes are open; features of other digits say so as often as a retrained model does."""
    more = ["perturb.probe_images=1000", "method.alpha=0", "perturb.draws=4"]
    done = run_small(["unlearn", *words, *models, *REQUEST, *TUNING, *more, "run.name=probed"])
    assert done.code == 0, done.output
    drawn = PerturbedStore(runs / "probed" / "perturbed")
    labels = np.stack([drawn.gather(np.arange(len(drawn)), draw)["perturbing_label"] for draw in range(4)])
    scores = json.loads((runs / "probed" / "metrics.json").read_text())["models"]
    assert 0.5 < (labels == 1).mean() < scores["original"]["acc_forget_train"]
    assert abs(scores["unlearned"]["acc_forget_test"] - scores["retrained"]["acc_forget_test"]) < 0.1


def test_the_closed_form_without_a_forbidden_label() -> None:
    p, t = np.array([[0.7, 0.2, 0.1]]), np.array([[0.5, 0.25, 0.25]])
    q = label_distribution(np.log(p), t, None, [], 1.0)
    np.testing.assert_allclose(q, p * t / (p * t).sum())


def test_evaluation_tells_fine_from_coarse(finished: Path, digits: Source) -> None:
    fine = {i: c for part in ("train", "test") for piece in digits.pieces(part)
            for _, i, c in zip(*digits.index(piece).to_pydict().values(), strict=True)}  # fmt: skip
    table = pq.read_table(finished / "predictions" / "unlearned.parquet").to_pandas()
    assert len(table) == len(fine)
    for name, part, label in zip(table["id"], table["part"], table["label"], strict=True):
        assert part.startswith("forget") == (fine[name] == 3)
        assert digits.class_names[fine[name]] in list(GROUPS.values())[label]
    metrics = json.loads((finished / "metrics.json").read_text())
    assert metrics["scenario"] == "subclass"
    assert metrics["forget"]["classes"] == ["three"]
    assert metrics["class_names"] == list(GROUPS)
    values = metrics["models"]
    assert values["original"]["acc_forget_test"] > 0.8
    assert values["unlearned"]["acc_forget_test"] < values["original"]["acc_forget_test"] - 0.1
    assert values["unlearned"]["acc_retain_test"] > 0.7
    assert "three" in (finished / "report.html").read_text()


@pytest.mark.parametrize("name", ["uniform", "confusion"])
def test_other_oracles(models: list[str], words: list[str], runs: Path, run_small: Run, name: str) -> None:
    request = [f"oracle={name}", "data.validation_fraction=0.3", *REQUEST, f"run.name={name}"]
    done = run_small(["oracle", *words, models[0], *request])
    assert done.code == 0, done.output
    data = json.loads((runs / name / "transition.json").read_text())
    (row,) = data["transition"]
    assert sum(row) == pytest.approx(1)
    if name == "uniform":
        np.testing.assert_allclose(row, 1 / 3)
    else:
        assert np.argmax(row) == 1  # the original takes threes for what they are
        assert all(f"{other} " in done.output for other in GROUPS)


def test_oracles_are_told_what_is_left_of_a_coarse_class(words: list[str]) -> None:
    source = open_source(load(words).settings.data)
    told = remaining(source, [3, 1, 4, 7])
    assert told["open"] == "for example two, five"
    assert told["mixed"] == "for example eight"


def test_what_oracles_are_shown(ray_local: None, words: list[str], digits: Source) -> None:
    """The row shows the fine class; the coarse columns show what is left. The shortlist may hold the coarse class."""
    source = open_source(load(words).settings.data)
    labels = np.concatenate([digits.index(piece)["label"].to_numpy() for piece in digits.pieces("train")])
    threes = np.flatnonzero(labels == 3)
    settings = load([*words, "oracle.images=40", "oracle.shortlist=1"]).settings.oracle
    job = prepare(source, settings, [3], 1.0, False, 0, threes, None, fine=True)
    assert [len(row) for row in job.candidates] == [1]
    everything = digits.gather("train", np.arange(len(labels)))
    encoded = dict(zip(everything["image"].to_pylist(), everything["label"].to_pylist(), strict=True))
    pixels = {np.asarray(Image.open(BytesIO(image)).convert("RGB")).tobytes(): c for image, c in encoded.items()}

    def shown(images: tuple[bytes, ...]) -> set[int]:
        return {pixels[np.asarray(Image.open(BytesIO(image))).tobytes()] for image in images}

    assert job.fine is not None
    assert (job.row(0).name, len(job.row(0).images), shown(job.row(0).images)) == ("three", 40, {3})
    column = job.concepts[job.candidates[0][0]]
    assert len(column.images) == 40
    members = {digits.class_names.index(name) for name in GROUPS[column.name]}
    assert shown(column.images) <= members - {3}
    assert column.description.startswith("for example ")


@pytest.mark.parametrize(
    ("request_words", "parts"),
    [
        (["forget.scenario=subclass", "forget.classes=[]"], ["forget.classes is empty"]),
        (["forget.scenario=subclass", "forget.classes=[thre]"], ["'thre'", "'three'"]),
        (["forget.scenario=subclass", "forget.classes=[open]"], ["'open' is a coarse class", "two, three, five"]),
        (["forget.scenario=subclass", "forget.classes=[two,three,five]"], ["every fine class of 'open'"]),
        (["forget.classes=[three]"], ["'three' is a fine class", "forget.scenario=subclass"]),
        ([*REQUEST, "data.coarse=null"], ["needs coarse labels", "data.coarse=FILE"]),
        ([*REQUEST, "data.coarse=cifar10_pairs"], ["no class 'cat'"]),
        ([*REQUEST, "train.stop=calibrated", "data.validation_fraction=0.1"], ["train.stop=fixed"]),
        ([*REQUEST, "method=unsir"], ["method=unsir", "not for subclass"]),
        ([*REQUEST, "data.coarse_column=kind"], ["data.coarse_column"]),
    ],
)
def test_refusals(
    models: list[str], words: list[str], runs: Path, run_small: Run, request_words: list[str], parts: list[str]
) -> None:
    done = run_small(["unlearn", *words, models[0], *request_words, "run.name=refused"])
    assert done.code == 2, done.output
    assert "Traceback" not in done.output
    for part in parts:
        assert part in done.output
    assert not (runs / "refused").exists()


def test_a_model_of_fine_labels_is_refused(words: list[str], digits_model: Path, run_small: Run) -> None:
    done = run_small(["unlearn", *words, f"model.path={digits_model}", *REQUEST, "run.name=refused"])
    assert done.code == 2
    assert "10 labels, but the data has 3 classes" in done.output


def test_plan(words: list[str], run_small: Run) -> None:
    done = run_small(["plan", *words, *REQUEST, "oracle=uniform"])
    assert done.code == 0, done.output
    lines = dict(line.split("  ", 1) for line in done.output.splitlines() if "  " in line)
    assert lines["forget concepts"].strip() == "1"
    assert lines["pairs rated"].strip().startswith("3 ")  # the coarse class itself is a neighbour, too
