"""Agreement of two oracles by hand, and with WordNet where that is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_wordnet

from megu_dist.errors import UserError
from megu_dist.oracle import compare, show
from megu_dist.oracle.compare import Opinion

COLUMNS = ["a", "b", "c", "d", "e"]
NAN = float("nan")


def opinion(rows: dict[str, list[float]], columns: list[str] = COLUMNS, name: str = "one") -> Opinion:
    return Opinion(name, columns, {row: np.array(values, np.float64) for row, values in rows.items()})


def transition(ratings: list[list[float | None]], rows: list[str], columns: list[str], **more: Any) -> dict[str, Any]:
    """What a fill writes, in short."""
    labels = [columns.index(row) if row in columns else 0 for row in rows]
    plain = np.nan_to_num(np.array(ratings, np.float64))
    given = {"rows": rows, "row_labels": labels, "columns": columns, "ratings": ratings, "tau": 1.0, "fine": False}
    matrix = (plain / plain.sum(1, keepdims=True)).tolist()
    return {**given, "transition": matrix, "oracle": {"name": "o", "id": "o:1", "stand_in": ""}, **more}


def write(folder: Path, data: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "transition.json").write_text(data if isinstance(data, str) else json.dumps(data))
    return folder


# --- agreement --------------------------------------------------------------------------------------------------------


def test_the_same_opinion_agrees_wholly() -> None:
    one = opinion({"a": [NAN, 1, 5, 2, 3]})
    (found,) = compare.compare(one, one)
    assert (found.row, found.columns, found.spearman) == ("a", 4, pytest.approx(1))
    assert found.overlap == {1: 1.0, 3: 1.0}  # no five nearest among four


def test_rank_correlation_and_overlap_by_hand() -> None:
    one = opinion({"a": [NAN, 1, 2, 3, 4]})
    other = opinion({"a": [NAN, 9, 7, 8, 10]})
    (found,) = compare.compare(one, other)
    # Ranks 1 2 3 4 and 3 1 2 4: differences 2, 1, 1, 0.
    assert found.spearman == pytest.approx(1 - 6 * (4 + 1 + 1) / (4 * 15))
    assert found.overlap == {1: 1.0, 3: pytest.approx(2 / 3)}  # e; e d c and e b d


def test_opposite_opinions() -> None:
    (found,) = compare.compare(opinion({"a": [NAN, 1, 2, 3, 4]}), opinion({"a": [NAN, 4, 3, 2, 1]}))
    assert found.spearman == pytest.approx(-1)
    assert found.overlap[1] == 0


def test_ties_share_their_rank() -> None:
    (found,) = compare.compare(opinion({"a": [NAN, 1, 1, 3, 4]}), opinion({"a": [NAN, 1, 2, 3, 4]}))
    x, y = np.array([1.5, 1.5, 3, 4]), np.array([1.0, 2, 3, 4])
    assert found.spearman == pytest.approx(np.corrcoef(x, y)[0, 1])


def test_an_opinion_without_differences_has_no_correlation() -> None:
    (found,) = compare.compare(opinion({"a": [NAN, 5, 5, 5, 5]}), opinion({"a": [NAN, 1, 2, 3, 4]}))
    assert np.isnan(found.spearman)


def test_only_what_both_rated_is_compared() -> None:
    one = opinion({"a": [NAN, 1, NAN, 3, 4], "b": [1, NAN, 2, 3, 4]})
    columns = ["e", "d", "x", "c", "b", "a"]  # in another order, and one more
    other = opinion({"a": [40, 30, 99, 20, 10, NAN], "z": [1, 2, 3, 4, 5, 6]}, columns, "two")
    (found,) = compare.compare(one, other)
    assert (found.row, found.columns) == ("a", 3)
    assert found.spearman == pytest.approx(1)
    assert found.overlap == {1: 1.0}


@pytest.mark.parametrize("other", [opinion({"z": [1, 2, 3, 4, 5]}), opinion({"a": [1, 2, 3]}, ["a", "b", "x"])])
def test_nothing_to_compare(other: Opinion) -> None:
    with pytest.raises(UserError, match="in common"):
        compare.compare(opinion({"a": [NAN, 1, 2, 3, 4]}), other)


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_run_folder_or_its_file_is_loaded_without_the_row_itself(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", transition([[10, 1, None], [2, 10, 3]], ["a", "b"], ["a", "b", "c"]))
    for path in (folder, folder / "transition.json"):
        found = compare.load(str(path))
        assert (found.name, found.columns) == ("o (run)", ["a", "b", "c"])
        np.testing.assert_array_equal(found.rows["a"], [NAN, 1, NAN])
        np.testing.assert_array_equal(found.rows["b"], [2, NAN, 3])


def test_a_fine_row_is_no_column(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", transition([[10, 1, 4]], ["tabby"], ["a", "b", "c"], fine=True))
    np.testing.assert_array_equal(compare.load(str(folder)).rows["tabby"], [10, 1, 4])


BROKEN = [
    "",
    "{",
    "[]",
    "7",
    "{}",
    json.dumps(transition([[10, 1, 4]], ["a"], ["a", "b"])),
    json.dumps(transition([[10, 1]], ["a"], ["a", "b"]) | {"row_labels": []}),
    json.dumps(transition([[10, 1]], ["a"], ["a", "b"]) | {"ratings": [["high", "low"]]}),
    json.dumps(transition([[10, 1]], ["a"], ["a", "b"]) | {"ratings": None}),
    json.dumps(transition([[10, 1]], ["a"], ["a", "b"]) | {"oracle": "embedding"}),
]


@pytest.mark.parametrize("text", BROKEN)
def test_a_file_that_is_no_transition_matrix(tmp_path: Path, text: str) -> None:
    folder = write(tmp_path / "run", text)
    with pytest.raises(UserError, match="is not a transition matrix of megu"):
        compare.load(str(folder))
    with pytest.raises(UserError, match="is not a transition matrix of megu"):
        show.read(folder)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="megu oracle fill"):
        compare.load(str(tmp_path))
    with pytest.raises(UserError, match="megu oracle fill"):
        show.read(tmp_path)


# --- WordNet ----------------------------------------------------------------------------------------------------------


def test_wordnet_path_similarity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a small database in the real format, as Debian lays it out: without the small files that nltk wants."""
    import nltk

    monkeypatch.setattr(nltk.data, "path", list(nltk.data.path))
    monkeypatch.setenv("WORDNET_DIR", str(tiny_wordnet.write(tmp_path / "dict")))
    columns = ["cat", "Dog", "T-shirt/top", "ankle boot", "garment", "zyzzyx"]
    found = compare.wordnet_opinion(columns, ["cat", "zyzzyx"])
    assert list(found.rows) == ["cat"]  # no opinion of what it does not know
    distance = [NAN, 4, 6, 5, 5]  # cat feline animal canine dog; … entity artifact garment t-shirt; …
    np.testing.assert_allclose(found.rows["cat"], [*(10 / (1 + d) for d in distance), NAN])
    with pytest.raises(UserError, match="too few of these class names"):
        compare.wordnet_opinion(["cat", "qqq", "zyzzyx"], ["cat"])


def test_without_wordnet_data_the_word_says_where_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    import nltk

    monkeypatch.delenv("WORDNET_DIR", raising=False)
    monkeypatch.setattr(compare, "WORDNET_FOLDERS", ())
    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(UserError) as error:
        compare.wordnet_opinion(["cat", "dog", "frog"], ["cat"])
    for part in ("no WordNet data", "wordnet-base", "WORDNET_DIR"):
        assert part in str(error.value)


def test_real_wordnet_puts_the_dog_nearer_to_the_cat_than_the_truck() -> None:
    try:
        found = compare.wordnet_opinion(["cat", "dog", "truck", "ship"], ["cat"])
    except UserError as error:
        pytest.skip(str(error))
    cat, dog, truck, ship = found.rows["cat"]
    assert np.isnan(cat)
    assert dog > truck > 0
    assert dog > ship > 0
