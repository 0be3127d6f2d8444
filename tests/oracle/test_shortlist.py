"""Candidates: few of many classes, and still those that matter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import thousand

from megu_dist.oracle import shortlist
from megu_dist.oracle.backends.embedding import EmbeddingOracle, EmbeddingSettings
from megu_dist.oracle.base import Concept, Pair

LABELS = [97 * i for i in range(10)]
SHORT = 32


def scores(rows: list[list[float]]) -> np.ndarray:
    return np.array(rows, np.float64)


def test_no_size_or_a_large_one_means_all_other_classes() -> None:
    everything = [[1, 2, 3, 4], [0, 1, 3, 4]]
    for size in (0, -1, 4, 5, 100):
        assert shortlist.candidates(size, [0, 2], 5, [scores([[0] * 5] * 2)]) == everything
    assert shortlist.candidates(0, [-1], 3, []) == [[0, 1, 2]]  # a fine class is no column


def test_the_highest_scores_are_taken() -> None:
    found = shortlist.candidates(2, [0, 3], 5, [scores([[10, 1, 9, 5, 3], [4, 4, 1, 10, 0]])])
    assert found == [[2, 3], [0, 1]]


def test_sources_take_turns() -> None:
    names, confusions = scores([[10, 9, 8, 7, 6, 5, 0, 0]]), scores([[0, 0, 0, 0, 0, 0.1, 0.2, 0.7]])
    assert shortlist.candidates(1, [0], 8, [names, confusions]) == [[1]]
    assert shortlist.candidates(2, [0], 8, [names, confusions]) == [[1, 7]]
    assert shortlist.candidates(4, [0], 8, [names, confusions]) == [[1, 2, 6, 7]]
    assert shortlist.candidates(5, [0], 8, [names, confusions]) == [[1, 2, 3, 6, 7]]


def test_what_both_sources_name_is_taken_once() -> None:
    one, other = scores([[0, 9, 8, 7, 1, 2]]), scores([[0, 9, 7, 8, 2, 1]])
    assert shortlist.candidates(4, [0], 6, [one, other]) == [[1, 2, 3, 5]]


@pytest.mark.parametrize("size", [1, 7, 32])
def test_the_concept_itself_is_never_a_candidate(size: int) -> None:
    rng = np.random.default_rng(0)
    labels = [0, 40, 99]
    random = [rng.random((3, 100)) for _ in range(2)]
    for score in random:
        score[range(3), labels] = 2.0  # nothing is nearer than itself
    found = shortlist.candidates(size, labels, 100, random)
    for row, label in zip(found, labels, strict=True):
        assert label not in row
        assert len(set(row)) == len(row) == size
        assert row == sorted(row)


def test_the_union_holds_the_best_of_each_source() -> None:
    rng = np.random.default_rng(1)
    names, confusions = rng.random((5, 200)), rng.random((5, 200))
    labels = [3, 50, 77, 100, 199]
    for row, chosen in enumerate(shortlist.candidates(SHORT, labels, 200, [names, confusions])):
        for source in (names, confusions):
            best = [j for j in np.argsort(-source[row]) if j != labels[row]][: SHORT // 2]
            assert set(best) <= set(chosen)


@pytest.fixture(scope="module")
def full_rows() -> tuple[np.ndarray, int]:
    """(10, 1000) ratings by the embedding backend, asked for all pairs; and how many of those differ."""
    oracle = EmbeddingOracle(EmbeddingSettings(name="embedding"))
    concepts = [Concept(name) for name in thousand.names()]
    rows = [[r.value for r in oracle.rate([Pair(concepts[i], other) for other in concepts])] for i in LABELS]
    return np.array(rows), len(concepts)


def nearest(row: np.ndarray, own: int, among: list[int] | None = None) -> list[int]:
    order = [j for j in np.argsort(-row, kind="stable").tolist() if j != own]
    return [j for j in order if among is None or j in among][:5]


def share_that_agrees(full: np.ndarray, found: list[list[int]]) -> float:
    """Of rows whose five nearest are the same among the candidates as among all classes."""
    rows = zip(full, LABELS, found, strict=True)
    return float(np.mean([nearest(row, own, among) == nearest(row, own) for row, own, among in rows]))


def test_a_thousand_classes_and_ten_rows_take_320_ratings_with_the_same_neighbours(
    full_rows: tuple[np.ndarray, int], ray_local: None
) -> None:
    full, classes = full_rows
    found = shortlist.candidates(SHORT, LABELS, classes, [shortlist.name_similarity(thousand.names(), LABELS)])
    assert sum(map(len, found)) == 320
    agree = [
        nearest(full[i], own, row) == nearest(full[i], own)
        for i, (own, row) in enumerate(zip(LABELS, found, strict=True))
    ]
    assert np.mean(agree) >= 0.95


def test_confusions_that_say_something_else_push_no_neighbour_out(full_rows: tuple[np.ndarray, int]) -> None:
    full, classes = full_rows
    other = np.random.default_rng(2).dirichlet(np.full(classes, 0.05), len(LABELS))
    found = shortlist.candidates(SHORT, LABELS, classes, [full, other])
    assert sum(map(len, found)) == 320
    agree = [
        nearest(full[i], own, row) == nearest(full[i], own)
        for i, (own, row) in enumerate(zip(LABELS, found, strict=True))
    ]
    assert np.mean(agree) >= 0.95
    assert all(int(other[i].argmax()) in row for i, row in enumerate(found))


@pytest.fixture(scope="module")
def thousand_classes(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The words of a request for ten of a thousand classes."""
    folder = tmp_path_factory.mktemp("thousand")
    thousand.write(folder / "train.parquet", thousand.names())
    thousand.write(folder / "test.parquet", thousand.names(), 1)
    data = ["data=parquet", f"data.path={folder / 'train.parquet'}", f"data.test_path={folder / 'test.parquet'}"]
    return [*data, f"forget.classes={LABELS}".replace(" ", ""), f"run.dir={folder / 'runs'}"]


@pytest.mark.usefixtures("ray_local")
def test_the_command_with_a_shortlist(
    thousand_classes: list[str], run_megu: Any, full_rows: tuple[np.ndarray, int]
) -> None:
    done = run_megu(["oracle", "fill", *thousand_classes, f"oracle.shortlist={SHORT}", "run.name=short"])
    assert done.code == 0, done.output
    folder = Path(next(word for word in thousand_classes if word.startswith("run.dir="))[len("run.dir=") :]) / "short"
    data = json.loads((folder / "transition.json").read_text())
    assert (data["pairs"], data["reused"]) == (320, 0)
    assert 300 < data["calls"] <= 320
    ratings = np.array(data["ratings"], np.float64)
    t = np.array(data["transition"])
    rated = ~np.isnan(ratings)
    rated[range(10), LABELS] = False
    assert rated.sum(1).tolist() == [SHORT] * 10
    np.testing.assert_allclose(t.sum(1), 1)
    np.testing.assert_allclose((t * ~rated).sum(1), 0.02)  # the tail's share, over all others alike
    assert (t[range(10), LABELS] == 0).all()
    full = full_rows[0]
    agree = [nearest(t[i], own) == nearest(full[i], own) for i, own in enumerate(LABELS)]
    assert np.mean(agree) >= 0.95
    picture = (folder / "figures" / "transition.png").read_bytes()
    assert picture.startswith(b"\x89PNG")


@pytest.mark.perf
def test_filling_ten_rows_of_a_thousand_takes_twenty_seconds_with_start_up(thousand_classes: list[str]) -> None:
    start = time.monotonic()
    command = [sys.executable, "-m", "megu_dist.cli", "oracle", "fill", *thousand_classes, "run.name=timed"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)
    seconds = time.monotonic() - start
    print(f"\n10 × 1,000 by embedding in a fresh process: {seconds:.1f} s\n{done.stderr}")
    assert done.returncode == 0, done.stderr
    assert "pairs 9990" in done.stdout
    assert seconds <= 20


def test_classes_that_are_gone_are_no_candidates() -> None:
    score = np.array([[0.0, 9.0, 8.0, 7.0, 6.0]])
    assert shortlist.candidates(2, [0], 5, [score], gone=[1]) == [[2, 3]]
    assert shortlist.candidates(0, [0], 5, [score], gone=[1]) == [[2, 3, 4]]
