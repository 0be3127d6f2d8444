"""Values that the types let through."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from megu_dist.config.compose import GROUPS, known_keys, load
from megu_dist.config.registry import components
from megu_dist.config.validate import (
    AT_LEAST_ONE,
    CHOICES,
    NOT_NEGATIVE,
    POSITIVE,
    RANGES,
    SHARE,
    check,
    check_forget,
    resolve_classes,
)
from megu_dist.errors import UserError

WRONG = {
    POSITIVE: [0, -1],
    NOT_NEGATIVE: [-1],
    AT_LEAST_ONE: [0, -3],
    SHARE: [-0.1, 1],
    RANGES["oracle.image_side"]: [8],
    RANGES["oracle.prior"]: [-0.1, 1.5],
    RANGES["perturb.epsilon"]: [0, 1.5],
    RANGES["perturb.probe_depth"]: [0, 1.5],
    RANGES["method.distill"]: [-0.1, 1.1],
    RANGES["train.layer_decay"]: [0, 1.5],
    RANGES["method.gamma"]: [0, 1.5],
    RANGES["method.saliency"]: [0, 1.5],
    RANGES["method.epsilon"]: [0, 1.5],
    RANGES["engine.zero_stage"]: [-1, 4],
    RANGES["run.logical_cpus"]: [3],
    RANGES["run.object_store_gb"]: [0.05],
}
NAMES = ["T-shirt", "Trouser", "7", "Coat"]


def owner(key: str) -> list[str]:
    """The choice of component that brings the setting ``key``, where the default choice does not."""
    group, _, name = key.partition(".")
    for choice, component in components(group).items() if group in GROUPS else ():
        if component.settings is not None and name in {field.name for field in fields(component.settings)}:
            return [f"{group}={choice}"]
    return []


def test_the_defaults_pass() -> None:
    check(load([]).settings)


@pytest.mark.parametrize("key", [*RANGES, *CHOICES])
def test_every_rule_is_about_a_key_that_exists(key: str) -> None:
    assert key in known_keys()


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, rule in RANGES.items() for value in WRONG[rule]])
def test_a_value_out_of_range(key: str, value: float) -> None:
    settings = load([*owner(key), f"{key}={value}"]).settings
    with pytest.raises(UserError, match=f"{key}={value}.*must be {RANGES[key][0].split('(')[0].strip()}"):
        check(settings)


@pytest.mark.parametrize("key", CHOICES)
def test_an_unknown_choice_of_a_word(key: str) -> None:
    good = CHOICES[key][0]
    with pytest.raises(UserError, match=f"{key}={good}x: .*'{good}'"):
        check(load([f"{key}={good}x"]).settings)


def test_a_batch_has_an_image_for_every_worker() -> None:
    with pytest.raises(UserError, match=r"train\.batch_size=2 .*train\.num_workers=3"):
        check(load(["train.batch_size=2", "train.num_workers=3"]).settings)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ([], "forget.classes is empty"),
        (["forget.scenario=random"], "needs one of"),
        (["forget.scenario=random", "forget.count=5", "forget.fraction=0.1"], "needs one of"),
        (["forget.scenario=random", "forget.fraction=1"], "between 0 and 1"),
        (["forget.scenario=random", "forget.fraction=-0.5"], "between 0 and 1"),
        (["forget.scenario=random", "forget.count=0"], "at least 1"),
        (["forget.scenario=ids"], "needs forget.ids_file"),
        (["forget.scenario=ids", "forget.ids_file=/nowhere/ids.txt"], "no such file"),
        (["forget.classes=[Shirt]", "train.stop=calibrated"], "train.stop=fixed"),
        (["forget.scenario=random", "forget.count=5", "train.stop=calibrated"], "validation_fraction"),
    ],
)
def test_an_incomplete_forget_request(words: list[str], match: str) -> None:
    with pytest.raises(UserError, match=match):
        check_forget(load(words).settings)


def test_complete_forget_requests(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("train/00000001\n")
    for words in (
        ["forget.classes=[Shirt]"],
        ["forget.scenario=random", "forget.fraction=0.01"],
        ["forget.scenario=random", "forget.count=5", "train.stop=calibrated", "data.validation_fraction=0.2"],
        ["forget.scenario=ids", f"forget.ids_file={tmp_path / 'ids.txt'}"],
    ):
        check_forget(load(words).settings)


def test_classes_by_name_and_index() -> None:
    assert resolve_classes(["Coat", 0], NAMES) == [0, 3]
    assert resolve_classes(["1", "Trouser"], NAMES) == [1]
    assert resolve_classes([7], NAMES) == [2]  # a name wins over an index


def test_classes_that_are_not_there() -> None:
    with pytest.raises(UserError, match=r"no class 'Trousers'; did you mean 'Trouser'\?"):
        resolve_classes(["Trousers"], NAMES)
    for index in (4, -1):
        with pytest.raises(UserError, match=f"no class '{index}'"):
            resolve_classes([index], NAMES)
    with pytest.raises(UserError, match="names every class"):
        resolve_classes([0, 1, "7", "Coat"], NAMES)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["engine.offload=optimiser"], "optimizer"),
        (["engine.offload=optimizer"], "zero_stage=1 or 2 or 3, not 0"),
        (["engine.offload=parameters", "engine.zero_stage=2"], "zero_stage=3, not 2"),
    ],
)
def test_offloading_needs_a_stage_that_can(words: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        check(load(["engine=deepspeed", *words]).settings)
    check(load(["engine=deepspeed", "engine.zero_stage=3", "engine.offload=parameters"]).settings)
