"""Ratings from a written table of the classifier's own confusions."""

from __future__ import annotations

from math import isnan, log10
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megu_dist.errors import UserError
from megu_dist.oracle.backends.confusion import FLOOR, ConfusionOracle, ConfusionSettings
from megu_dist.oracle.base import Concept, Pair

CLASSES = ["cat", "dog", "truck", "ship"]
ROWS = {
    "cat": [0.7, 0.2, 0.0999, 0.0001],
    "dog": [0.05, 0.9, 0.05, 0.0],
    "tabby": [0.6, 0.3, 0.06, 0.04],  # a fine class: no column of its own
    "truck": [0.0, 0.0, 1.0, 0.0],  # never confused
}


def write(path: Path, rows: dict[str, list[float]]) -> str:
    flat = pa.array([value for row in rows.values() for value in row], pa.float32())
    columns = {
        "label": pa.array(range(len(rows))),
        "name": pa.array(list(rows)),
        "count": pa.array([10] * len(rows)),
        "probs": pa.FixedSizeListArray.from_arrays(flat, len(CLASSES)),
    }
    pq.write_table(pa.table(columns).replace_schema_metadata({"classes": "\n".join(CLASSES)}), path)
    return str(path)


@pytest.fixture
def oracle(tmp_path: Path) -> ConfusionOracle:
    return ConfusionOracle(ConfusionSettings(name="confusion", path=write(tmp_path / "table.parquet", ROWS)))


def value(oracle: ConfusionOracle, first: str, second: str) -> float:
    return oracle.rate([Pair(Concept(first), Concept(second))])[0].value


@pytest.mark.parametrize(
    ("first", "second", "share"),
    [
        ("cat", "dog", 1.0),  # what a class is confused with most
        ("cat", "truck", 0.0999 / 0.2),
        ("cat", "ship", 0.0001 / 0.2),
        ("dog", "cat", 1.0),
        ("dog", "truck", 1.0),
        ("tabby", "cat", 1.0),  # the coarse class is another class to a fine one
        ("tabby", "dog", 0.3 / 0.6),
        ("tabby", "ship", 0.04 / 0.6),
    ],
)
def test_a_rating_is_linear_in_the_logarithm_of_the_confusion(
    oracle: ConfusionOracle, first: str, second: str, share: float
) -> None:
    # 10 for the largest confusion, 2.5 less for each power of ten below it.
    assert value(oracle, first, second) == pytest.approx(10 + 2.5 * log10(share), abs=1e-4)


def test_what_is_never_confused_is_rated_nothing(oracle: ConfusionOracle) -> None:
    assert FLOOR == 1e-4
    assert value(oracle, "dog", "ship") == pytest.approx(0)
    assert [value(oracle, "truck", other) for other in ("cat", "dog", "ship")] == pytest.approx([0, 0, 0])


def test_a_class_is_wholly_like_itself(oracle: ConfusionOracle) -> None:
    assert [value(oracle, name, name) for name in ("cat", "truck")] == [10, 10]


def test_a_class_without_validation_images_has_no_rating(oracle: ConfusionOracle) -> None:
    assert isnan(value(oracle, "ship", "cat"))
    assert isnan(value(oracle, "ship", "ship"))
    assert isnan(value(oracle, "cat", "tabby"))  # no class of the model


def test_ratings_come_in_the_order_of_the_questions(oracle: ConfusionOracle) -> None:
    pairs = [Pair(Concept(a), Concept(b, "a description changes nothing")) for a in ROWS for b in CLASSES]
    together = [rating.value for rating in oracle.rate(pairs)]
    assert together == pytest.approx([value(oracle, p.first.name, p.second.name) for p in pairs], nan_ok=True)


def test_it_is_known_by_the_content_of_its_table(tmp_path: Path) -> None:
    def about(path: str | None) -> str:
        return ConfusionOracle.about(ConfusionSettings(name="confusion", path=path)).id

    one = about(write(tmp_path / "a.parquet", ROWS))
    assert one == about(write(tmp_path / "b.parquet", ROWS))
    assert one != about(write(tmp_path / "b.parquet", ROWS | {"dog": [0.06, 0.9, 0.04, 0.0]}))
    for missing in (None, str(tmp_path / "nowhere.parquet"), str(tmp_path)):
        with pytest.raises(UserError, match=r"needs model\.path"):
            about(missing)


def test_it_says_that_no_oracle_was_asked(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", ROWS)
    known = ConfusionOracle.about(ConfusionSettings(name="confusion", path=path))
    assert "no oracle was asked" in known.stand_in
    assert not known.symmetric
