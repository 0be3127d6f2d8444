from __future__ import annotations

import math

from megu_dist.benchmark.search import trials
from megu_dist.config.registry import components

SPACE = {"a": ("log", 0.001, 0.1), "b": ("uniform", -1.0, 1.0), "c": ("choice", "x", "y"), "d": ("int", 2, 5)}


def values(words: tuple[str, ...]) -> dict[str, str]:
    return dict(word.split("=") for word in words)


def test_the_first_trial_is_the_default_and_the_others_lie_in_the_space() -> None:
    found = trials(SPACE, "method", 32)
    assert len(found) == 32
    assert found[0] == ()
    for words in found[1:]:
        v = values(words)
        assert 0.001 <= float(v["a"]) <= 0.1
        assert -1 <= float(v["b"]) <= 1
        assert v["c"] in "xy"
        assert 2 <= int(v["d"]) <= 5
    logs = [math.log10(float(values(w)["a"])) for w in found[1:]]
    assert -2.1 < sum(logs) / len(logs) < -1.9  # log-uniform: centred on 0.01
    assert {values(w)["d"] for w in found[1:]} == {"2", "3", "4", "5"}


def test_trials_are_the_same_again_and_differ_by_method() -> None:
    assert trials(SPACE, "one", 8) == trials(SPACE, "one", 8)
    assert trials(SPACE, "one", 8) != trials(SPACE, "two", 8)
    assert trials(SPACE, "one", 8)[:4] == trials(SPACE, "one", 4)  # a larger budget goes on where a smaller one ended
    assert trials({}, "none", 3) == [(), (), ()]


def test_every_method_declares_a_space_of_keys_that_exist() -> None:
    from megu_dist.config.compose import known_keys

    known = known_keys()
    for name, component in components("method").items():
        assert name == "retrain" or component.target.search, name
        assert set(component.target.search) <= set(known), name
