"""The whole command on the digits: artefacts, numbers, resumption."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file

from megu_dist.data.base import Source

Run = Callable[[list[str]], Any]
GOLDEN = Path(__file__).parent / "golden" / "digits_unlearn.json"
FORGET = ["forget.classes=[three]"]
TUNING = ["train.epochs=3", "train.lr=0.02", "train.batch_size=64", "train.precision=fp32", "method.lambda_forget=1"]
STAGES = ["split", "oracle", "perturb", "finetune", "evaluate", "report"]


@pytest.fixture(scope="module")
def words(digits_words: list[str], digits_model: Path, digits_retrained: Path) -> list[str]:
    """The shared request, without a name."""
    return [
        "unlearn",
        *digits_words,
        f"model.path={digits_model}",
        f"evaluate.retrained={digits_retrained}",
        *FORGET,
        *TUNING,
    ]


@pytest.fixture(scope="module")
def finished(words: list[str], run_megu: Run, runs_dir: Path) -> Path:
    """The run folder of one whole ``megu unlearn``."""
    done = run_megu([*words, "run.name=megu"])
    assert done.code == 0, done.output
    assert "already done" not in done.output
    for stage in STAGES:
        assert f"{stage}: started" in done.output
    assert str(runs_dir / "megu" / "model") in done.output
    return runs_dir / "megu"


def metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def records(folder: Path) -> dict[str, tuple[int, str]]:
    """Time and key of every stage's record."""
    return {p.stem: (p.stat().st_mtime_ns, json.loads(p.read_text())["key"]) for p in (folder / ".stages").iterdir()}


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model" / "model.safetensors")


def test_the_original_has_learnt(finished: Path) -> None:
    models = metrics(finished)["models"]
    assert models["original"]["acc_retain_test"] > 0.8
    assert models["original"]["acc_forget_test"] > 0.8
    assert models["retrained"]["acc_forget_test"] == 0
    assert models["retrained"]["acc_retain_test"] > 0.8


def test_the_class_is_forgotten_and_the_rest_is_not(finished: Path) -> None:
    unlearned = metrics(finished)["models"]["unlearned"]
    assert unlearned["acc_forget_test"] < 0.1
    assert unlearned["acc_forget_train"] < 0.1
    assert unlearned["acc_retain_test"] > 0.7


def test_metrics_have_the_documented_schema(finished: Path) -> None:
    found = metrics(finished)
    assert found["schema"] == 1
    assert (found["scenario"], found["method"]) == ("class", "megu")
    assert found["forget"]["classes"] == ["three"]
    assert set(found["models"]) == {"original", "unlearned", "retrained"}
    parts = ("retain_train", "forget_train", "retain_test", "forget_test")
    for values in found["models"].values():
        assert set(values) >= {f"{kind}_{part}" for part in parts for kind in ("acc", "loss")} | {"mia"}
        assert all(0 <= v <= 1 for k, v in values.items() if not k.startswith("loss"))
    assert set(found["versus_retrained"]) >= {"tow", "tow_mia", "avg_gap", "kl_forget", "activation_distance"}
    seconds = found["seconds"]
    assert set(seconds) == {*STAGES[:-1], "total", "retrained_training"}
    assert seconds["total"] == pytest.approx(sum(seconds[stage] for stage in STAGES[:-1]), abs=0.01)
    assert found["oracle"]["name"] == "embedding"
    assert found["oracle"]["calls"] + found["oracle"]["reused"] == 9
    assert found["engine"] == {"name": "deepspeed", "zero_stage": 0, "world_size": 1}
    assert set(found["environment"]) >= {"python", "torch", "ray", "deepspeed", "transformers"}


def test_artefacts(finished: Path, digits: Source) -> None:
    manifest = json.loads((finished / "split" / "manifest.json").read_text())
    forget = pq.read_table(finished / "split" / "forget.parquet")
    assert forget.column_names == ["row", "id", "label"]
    assert set(forget["label"].to_pylist()) == {3}
    assert manifest["forget"] == len(forget) == metrics(finished)["forget"]["count"]
    assert manifest["forget"] + manifest["retain"] == manifest["train"] == digits.num_rows("train")
    transition = json.loads((finished / "transition.json").read_text())
    assert transition["transition"][0][3] == 0
    perturbed = pa.concat_tables([pq.read_table(file) for file in (finished / "perturbed").glob("*.parquet")])
    assert sorted(perturbed["id"].to_pylist()) == sorted(forget["id"].to_pylist())
    history = [json.loads(line) for line in (finished / "history.jsonl").read_text().splitlines()]
    assert {line["epoch"] for line in history} == {0, 1, 2}
    assert history[-1]["loss_forget"] < history[0]["loss_forget"]
    html = (finished / "report.html").read_text()
    assert "three" in html
    assert list((finished / "figures").glob("*.png"))
    assert (finished / "config.yaml").is_file()
    assert (finished / "log.txt").is_file()
    assert not list((finished / ".tmp").iterdir())


def test_predictions_cover_every_image_once(finished: Path, digits: Source) -> None:
    accuracy = metrics(finished)["models"]
    for name in ("original", "unlearned", "retrained"):
        table = pq.read_table(finished / "predictions" / f"{name}.parquet").to_pandas()
        assert len(table) == digits.num_rows("train") + digits.num_rows("test")
        assert table["id"].is_unique
        for part, rows in table.groupby("part"):
            assert (rows["prediction"] == rows["label"]).mean() == pytest.approx(accuracy[name][f"acc_{part}"])
            assert (rows["label"] == 3).all() == part.startswith("forget")
        probs = np.stack(table["probs"])
        np.testing.assert_allclose(probs.sum(1), 1, atol=1e-4)
        assert (probs.argmax(1) == table["prediction"]).all()


def test_the_model_loads_with_transformers_alone(finished: Path, digits: Source) -> None:
    from transformers import AutoModelForImageClassification

    from megu_dist.data.readers import ImageReader
    from megu_dist.models.checkpoint import open_checkpoint

    model = AutoModelForImageClassification.from_pretrained(finished / "model").eval()
    assert model.config.id2label[3] == "three"
    preprocess = open_checkpoint(str(finished / "model")).preprocess
    out = ImageReader(digits, "test", preprocess)({"row": np.arange(digits.num_rows("test"))})
    with torch.no_grad():
        logits = model(pixel_values=preprocess.normalise(torch.from_numpy(out["image"]).float() / 255)).logits
    right = (logits.argmax(1).numpy() == out["label"])[out["label"] != 3].mean()
    assert right == pytest.approx(metrics(finished)["models"]["unlearned"]["acc_retain_test"], abs=0.005)


def test_golden_numbers(finished: Path) -> None:
    """Large changes of the method's results do not go unnoticed; update the file when they are meant."""
    golden = json.loads(GOLDEN.read_text())
    found = metrics(finished)
    for group, tolerances in golden.items():
        values = found["versus_retrained"] if group == "versus_retrained" else found["models"][group]
        for name, (expected, tolerance) in tolerances.items():
            assert values[name] == pytest.approx(expected, abs=tolerance), (group, name)


def test_the_same_command_again_does_nothing(finished: Path, words: list[str], run_megu: Run) -> None:
    before = records(finished)
    start = time.monotonic()
    done = run_megu([*words, "run.name=megu"])
    assert done.code == 0, done.output
    assert time.monotonic() - start < 15
    for stage in STAGES:
        assert f"{stage}: already done" in done.output
        assert f"{stage}: started" not in done.output
    assert records(finished) == before


def test_a_changed_strength_runs_only_what_it_touches(finished: Path, words: list[str], run_megu: Run) -> None:
    before, model, numbers = records(finished), weights(finished), metrics(finished)
    done = run_megu([*words, "run.name=megu", "method.alpha=1", "train.epochs=1"])  # N⁺ as before, no N⁻ as before
    assert done.code == 0, done.output
    changed = records(finished)
    for stage in STAGES:
        again = stage in ("finetune", "evaluate", "report")
        assert (f"{stage}: already done" in done.output) is not again
        assert (changed[stage] != before[stage]) is again
    assert any(not np.array_equal(value, model[name]) for name, value in weights(finished).items())
    back = run_megu([*words, "run.name=megu"])
    assert back.code == 0, back.output
    assert all(f"{stage}: already done" in back.output for stage in STAGES)
    assert all(np.array_equal(value, model[name]) for name, value in weights(finished).items())
    assert metrics(finished) == numbers


def test_a_change_of_execution_only_runs_nothing(finished: Path, words: list[str], run_megu: Run) -> None:
    options = ["perturb.num_actors=2", "oracle.num_replicas=2", "train.max_failures=9", "evaluate.num_actors=2"]
    done = run_megu([*words, "run.name=megu", *options])
    assert done.code == 0, done.output
    assert all(f"{stage}: already done" in done.output for stage in STAGES)


def test_the_oracle_and_report_verbs(finished: Path, digits_words: list[str], run_megu: Run) -> None:
    done = run_megu(["report", *digits_words, "run.name=megu"])
    assert done.code == 0, done.output
    assert "report.html" in done.output
    assert "unlearned" in done.output


def test_random_images_with_the_calibrated_stop(
    finished: Path, digits_words: list[str], digits_model: Path, run_small: Run, runs_dir: Path
) -> None:
    request = [
        "forget.scenario=random",
        "forget.fraction=0.05",
        "train.stop=calibrated",
        "data.validation_fraction=0.2",
    ]
    tuning = ["train.calibrate_every=1", "train.epochs=2", "train.batch_size=64", "engine=ddp", "oracle=uniform"]
    done = run_small(["unlearn", *digits_words, f"model.path={digits_model}", *request, *tuning, "run.name=random"])
    assert done.code == 0, done.output
    found = metrics(runs_dir / "random")
    assert found["scenario"] == "random"
    assert found["forget"] == {"count": 72, "classes": []}
    assert "versus_retrained" not in found
    assert "acc_forget_test" not in found["models"]["unlearned"]
    record = json.loads((runs_dir / "random" / ".stages" / "finetune.json").read_text())
    assert record["info"]["stopped"] in ("calibrated", "fixed")
    assert record["info"]["steps"] >= 1
    unlearned = found["models"]["unlearned"]
    assert unlearned["acc_retain_test"] > 0.7
    table = pq.read_table(runs_dir / "random" / "predictions" / "unlearned.parquet")
    assert table["part"].to_pylist().count("retain_test") == 288  # the validation images are never scored


def test_an_unreadable_forget_image_is_named(
    digits: Source, digits_model: Path, run_megu: Run, runs_dir: Path, tmp_path: Path
) -> None:
    table = digits.gather("train", np.arange(200))
    images, labels = table["image"].to_pylist(), table["label"].to_pylist()
    bad = labels.index(3)
    images[bad] = images[bad][:40]
    names = json.dumps({"info": {"features": {"label": {"_type": "ClassLabel", "names": digits.class_names}}}})
    schema = pa.schema([("image", pa.binary()), ("label", pa.int64())], metadata={"huggingface": names})
    for name, rows in (("train", slice(0, 150)), ("test", slice(150, 200))):
        pq.write_table(
            pa.table({"image": images[rows], "label": labels[rows]}, schema=schema), tmp_path / f"{name}.parquet"
        )
    data = ["data=parquet", f"data.path={tmp_path}", f"run.dir={runs_dir}", f"model.path={digits_model}"]
    done = run_megu(["unlearn", *data, "forget.classes=[three]", "oracle=uniform", "run.name=bad"])
    assert done.code == 2, done.output
    assert f"megu: image 'train/{bad:08d}' is to be forgotten and cannot be read" in done.output
    assert pq.read_table(runs_dir / "bad" / "split" / "bad_rows.parquet")["row"].to_pylist() == [bad]
    assert "Traceback" not in done.output
    assert not (runs_dir / "bad" / "perturbed").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_run_continues_from_its_checkpoint(words: list[str], finished: Path, tmp_path: Path) -> None:
    """SIGKILL after the first epoch; the same command then ends with the weights of the run that was left alone."""
    command = [sys.executable, "-m", "megu_dist.cli", *words, f"run.dir={tmp_path}", "run.name=killed"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    folder = tmp_path / "killed"
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 240
        while not list(folder.glob("checkpoints/*/*/epoch-00000/rank-0.json")):
            assert process.poll() is None, (folder / "log.txt").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (folder / "model").exists()
    again = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "perturb: already done" in again.stderr
    assert "finetune: started" in again.stderr
    expected, found = weights(finished), weights(folder)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-5)
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in history] == sorted(line["epoch"] for line in history)
    assert {line["epoch"] for line in history} == {0, 1, 2}
    shutil.rmtree(folder)
