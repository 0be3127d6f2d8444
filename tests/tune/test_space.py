"""What a sweep's space may be, and which words its values make. Nothing here starts Ray."""

from __future__ import annotations

from typing import Any

import pytest

from megu_dist.config.compose import load
from megu_dist.config.schema import SweepSettings
from megu_dist.errors import UserError
from megu_dist.tune.space import Dimension, read_space, words


def space(value: dict[str, Any], search: str = "grid") -> list[Dimension]:
    return read_space(SweepSettings(space=value, search=search))


def test_keys_may_be_nested_or_dotted() -> None:
    nested = space({"method": {"alpha": [0, 0.5]}, "train": {"lr": [0.1]}})
    assert nested == space({"method.alpha": [0, 0.5], "train.lr": [0.1]})
    assert [(d.key, d.values) for d in nested] == [("method.alpha", (0, 0.5)), ("train.lr", (0.1,))]


def test_the_command_line_adds_changes_and_takes_out() -> None:
    base = ["experiment=sensitivity_noise", "model.path=x"]
    found = load(
        [*base, "sweep.space.perturb.tau=[1,2]", "sweep.space.method.beta=null", "sweep.space.oracle=[uniform]"]
    )
    assert {d.key: d.values for d in read_space(found.settings.sweep)} == {
        "method.alpha": (0, 0.25, 0.5, 1, 2),
        "perturb.tau": (1, 2),
        "oracle": ("uniform",),
    }


def test_a_range_is_probed_at_its_ends() -> None:
    (lr,) = space({"train.lr": {"low": 0.001, "high": 0.1, "log": True}}, "random")
    assert lr.probes() == (0.001, 0.1)
    (epochs,) = space({"train.epochs": {"low": 1, "high": 4, "int": True}}, "random")
    assert epochs.probes() == (1, 4)
    assert {type(value) for value in epochs.probes()} == {int}
    drawn = {epochs.domain().sample() for _ in range(200)}
    assert drawn == {1, 2, 3, 4}  # both ends


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "sweep.space is empty"),
        ({"method": {"alhpa": [0]}}, r"unknown key 'method.alhpa'; did you mean '?method.alpha"),
        ({"seed.train": [0, 1]}, "use sweep.seeds"),
        ({"data.path": ["x"]}, "cannot be swept"),
        ({"model": ["cifar_resnet"]}, "cannot be swept"),
        ({"oracle": ["uniform", "embeding"]}, "embedding"),
        ({"method.alpha": 0.5}, "give a list of values"),
        ({"method.alpha": []}, "give a list of values"),
        ({"method.alpha": [0.5, 0.5]}, "name each value once"),
        ({"method.alpha": {"low": 0, "high": 1}}, "a grid needs a list"),
    ],
)
def test_what_is_wrong_is_named(value: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        space(value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"low": 1, "high": 0}, "must be below"),
        ({"low": 0, "high": 1, "log": True}, "above 0 on a logarithmic scale"),
        ({"low": "a", "high": 1}, "must be numbers"),
        ({"low": 0, "high": 1, "lgo": True}, "log"),
    ],
)
def test_ranges_that_are_none(value: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        space({"method.alpha": value}, "random")


def test_words_are_read_back_as_the_values_that_they_name() -> None:
    config = {
        "method.alpha": 0.123456789,
        "train.lr": 1e-05,
        "train.retain_per_epoch": None,
        "perturb.label_policy": "argmax",
        "train.epochs": 3,
        "oracle.both_orders": False,
        "perturb.noise": "both",
        "oracle.descriptions": "a folder/with, signs.json",
    }
    s = load(words(config)).settings
    assert getattr(s.method, "alpha") == pytest.approx(0.123456789, rel=1e-5)  # noqa: B009  (of a subclass)
    assert (s.train.lr, s.train.retain_per_epoch, s.train.epochs) == (1e-05, None, 3)
    assert (s.perturb.label_policy, s.oracle.both_orders) == ("argmax", False)
    assert s.oracle.descriptions == "a folder/with, signs.json"
