"""The random scenario's choice of rows, and files of ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megu_dist.config.schema import ForgetSettings
from megu_dist.data.split import choose, ids_hash, read_ids
from megu_dist.errors import UserError

ROWS = np.arange(1000)
LABELS = np.repeat([0, 1, 2, 4], [500, 300, 190, 10])


def request(**values: object) -> ForgetSettings:
    return ForgetSettings(scenario="random", **values)  # type: ignore[arg-type]


@pytest.mark.parametrize("stratified", [True, False])
@pytest.mark.parametrize("count", [1, 7, 100, 333, 999])
def test_exactly_n_rows_by_seed(count: int, stratified: bool) -> None:
    wanted = request(count=count, stratified=stratified)
    chosen = choose(ROWS, LABELS, wanted, 3)
    assert len(set(chosen.tolist())) == count
    assert np.array_equal(chosen, np.sort(chosen))
    assert np.array_equal(chosen, choose(ROWS, LABELS, wanted, 3))
    if count < 999:
        assert not np.array_equal(chosen, choose(ROWS, LABELS, wanted, 4))


def test_a_fraction_is_rounded() -> None:
    assert len(choose(ROWS, LABELS, request(fraction=0.0126), 0)) == 13


@pytest.mark.parametrize(
    ("count", "expected"), [(100, [50, 30, 19, 0, 1]), (10, [5, 3, 2, 0, 0]), (3, [1, 1, 1, 0, 0])]
)
def test_stratified_keeps_the_proportions(count: int, expected: list[int]) -> None:
    chosen = choose(ROWS, LABELS, request(count=count), 0)
    assert np.abs(np.bincount(LABELS[chosen], minlength=5) - expected).max() <= (count == 3)
    assert len(chosen) == count


def test_the_order_of_rows_does_not_matter() -> None:
    """A scan may list rows in any order."""
    order = np.random.default_rng(0).permutation(1000)
    for stratified in (True, False):
        wanted = request(count=77, stratified=stratified)
        assert np.array_equal(choose(ROWS, LABELS, wanted, 1), choose(ROWS[order], LABELS[order], wanted, 1))


def test_a_larger_request_holds_the_smaller_one() -> None:
    small, large = (choose(ROWS, LABELS, request(count=n, stratified=False), 0) for n in (50, 80))
    assert set(small.tolist()) < set(large.tolist())


def test_everything_and_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="nothing would be retained"):
        choose(ROWS, LABELS, request(count=1000), 0)
    with pytest.raises(UserError, match="less than one image"):
        choose(ROWS, LABELS, request(fraction=0.0001), 0)


def test_ids_file(tmp_path: Path) -> None:
    file = tmp_path / "ids.txt"
    file.write_text("# a request\n\n  b \na\r\nb\n")
    assert read_ids(str(file)) == ["b", "a", "b"]
    assert ids_hash(["b", "a"]) == ids_hash(["a", "b"]) != ids_hash(["a"])
    file.write_text("# nothing\n\n")
    with pytest.raises(UserError, match="names no image"):
        read_ids(str(file))
