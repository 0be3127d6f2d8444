from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megu_dist.benchmark.plan import make_cells, merge, read_groups, read_methods, read_seeds
from megu_dist.benchmark.runner import CellRunner
from megu_dist.config.schema import BenchmarkSettings
from megu_dist.errors import UserError

GROUP: dict[str, Any] = {
    "data": ["data=digits"],
    "train": ["train=scratch"],
    "unlearn": ["train=finetune"],
    "search": ["forget.classes=[seven]"],
    "targets": {"three": ["forget.classes=[three]"], "one": ["forget.classes=[one]"]},
    "variants": {"megu, uniform": ["method=megu", "oracle=uniform"]},
}


def settings(**changes: Any) -> BenchmarkSettings:
    given = {"methods": ["megu", "ssd"], "groups": {"g": GROUP}, "seeds": [0, 1, 2], "trials": 4}
    return BenchmarkSettings(**(given | changes))


def test_cells_and_what_they_wait_for() -> None:
    cells = {cell.id: cell for cell in make_cells(settings())}
    kinds = [cell.kind for cell in cells.values()]
    assert kinds.count("original") == 3
    assert kinds.count("trial") == 8
    assert kinds.count("retrained") == 6
    assert kinds.count("score") == 2 * 3 * 3
    assert all(need in cells for cell in cells.values() for need in cell.needs.values())
    score = cells["score/g/three/seed1/ssd"]
    assert score.needs["retrained"] == "retrained/g/three/seed1"
    assert score.needs["retrained_second"] == "retrained/g/three/seed2"  # another seed's, of the same forget set
    assert sorted(n for role, n in score.needs.items() if role.startswith("trial")) == [
        f"trial/g/ssd/{k}" for k in range(4)
    ]
    variant = cells["score/g/three/seed0/megu, uniform"]
    assert "oracle=uniform" in variant.words
    assert variant.base == "megu"
    assert "trial/g/megu/0" in variant.needs.values()
    assert "evaluate.split=validation" in cells["trial/g/megu/0"].words
    assert "evaluate.split=validation" not in score.words
    assert "exclude_forget=true" in cells["retrained/g/one/seed0"].words


def test_random_requests_differ_by_seed_and_so_need_second_retrained_models_of_their_own() -> None:
    group = GROUP | {"data": ["data=digits", "forget.scenario=random"], "targets": {"tenth": ["forget.fraction=0.1"]}}
    cells = {cell.id: cell for cell in make_cells(settings(groups={"g": group | {"variants": {}}}))}
    second = cells["retrained/g/tenth/seed0-second"]
    assert "seed.train=1000" in second.words
    assert "seed.unlearn=0" in second.words
    assert not any("second" in name for name in (c.id for c in make_cells(settings(floor=False))))


def test_shadows_are_further_pairs_of_models_of_the_same_request() -> None:
    cells = {cell.id: cell for cell in make_cells(settings(shadows=2))}
    shadow = cells["shadow/g/three/seed1/ssd"]
    assert {"seed.train=2001", "seed.unlearn=0", "seed.evaluate=0"} <= set(shadow.words)
    assert "seed.train=2001" in cells[shadow.needs["retrained"]].words
    assert "exclude_forget=true" in cells[shadow.needs["retrained"]].words
    assert cells["shadow/g/one/seed1/ssd"].needs["original"] == shadow.needs["original"]
    assert "trial/g/ssd/0" in shadow.needs.values()
    assert not any("uniform" in name for name in cells if name.startswith("shadow"))
    assert all(need in cells for cell in cells.values() for need in cell.needs.values())


def test_groups_with_the_same_models_share_them() -> None:
    other = GROUP | {"targets": {"two": ["forget.classes=[two]"]}, "variants": {}}
    cells = make_cells(settings(groups={"g": GROUP, "h": other}))
    assert sum(cell.kind == "original" for cell in cells) == 3


def test_seeds() -> None:
    assert read_seeds(settings(seeds=[3, [1, 2, 3]])) == [(3, 3, 3), (1, 2, 3)]
    for bad in ([], [[1, 2]], ["a"], [-1]):
        with pytest.raises(UserError, match=r"benchmark\.seeds"):
            read_seeds(settings(seeds=bad))


def test_methods() -> None:
    assert "retrain" not in read_methods(settings(methods=[]))
    assert len(read_methods(settings(methods=[]))) >= 12
    with pytest.raises(UserError, match="megu"):
        read_methods(settings(methods=["mega"]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"targets": {}}, "targets is empty"),
        ({"search": []}, "search is empty"),
        ({"tragets": {}}, "targets"),
        ({"data": "data=digits"}, "list of key=value words"),
        ({"data": ["digits"]}, "list of key=value words"),
        ({"variants": {"v": ["oracle=uniform"]}}, "which method"),
    ],
)
def test_bad_groups(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_groups(settings(groups={"g": GROUP | change}))


def test_no_group() -> None:
    with pytest.raises(UserError, match="experiment=benchmark_digits"):
        read_groups(settings(groups={}))


def test_null_leaves_out_a_group_a_target_or_a_variant() -> None:
    changed = GROUP | {"targets": GROUP["targets"] | {"three": None}, "variants": {"megu, uniform": None}}
    (group,) = read_groups(settings(groups={"g": changed, "h": None}))
    assert list(group.targets) == ["one"]
    assert not group.variants
    with pytest.raises(UserError, match="targets is empty"):
        read_groups(settings(groups={"g": GROUP | {"targets": {"three": None}}}))


def test_later_words_win() -> None:
    assert merge(["a=1", "b=2"], ["a=3"], ["+c=1"]) == ["b=2", "a=3", "+c=1"]


def test_the_settings_of_a_variant_go_before_tuned_ones(tmp_path: Path) -> None:
    varied = {**GROUP, "variants": {"megu, no noise": ["method=megu", "method.alpha=0"]}}
    cells = {cell.id: cell for cell in make_cells(settings(groups={"g": varied}))}
    tuned = ["method.alpha=0.75", "train.lr=0.0125"]
    found = {}
    for label in ("megu", "megu, no noise"):
        cell = replace(cells[f"score/g/three/seed0/{label}"], needs={})
        runner = CellRunner(str(tmp_path), ["data=digits"], None, 0.0)
        found[label] = runner._compose(cell, tuned, tmp_path / "cells" / label).settings
    assert [s.method.alpha for s in found.values()] == [0.75, 0]  # type: ignore[attr-defined]
    assert [s.train.lr for s in found.values()] == [0.0125, 0.0125]
