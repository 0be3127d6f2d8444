"""Ratings to probabilities."""

from __future__ import annotations

import json

import numpy as np
import pytest

from megu_dist.errors import UserError
from megu_dist.oracle.transition import Transition, from_ratings

RATINGS = np.array([[10.0, 2.0, 0.0, 5.0], [2.0, 10.0, 4.0, 4.0]])


@pytest.mark.parametrize("tau", [0.3, 1.0, 5.0])
def test_rows_are_softmaxes_without_the_concept_itself(tau: float) -> None:
    t = from_ratings(RATINGS.copy(), [0, 1], tau, True)
    weights = np.exp(RATINGS / tau)
    weights[0, 0] = weights[1, 1] = 0
    np.testing.assert_allclose(t, weights / weights.sum(1, keepdims=True))
    np.testing.assert_allclose(t.sum(1), 1)


def test_with_the_concept_itself() -> None:
    t = from_ratings(RATINGS.copy(), [0, 1], 1.0, False)
    assert t.argmax(1).tolist() == [0, 1]
    assert (t > 0).all()


def test_equal_ratings_give_a_uniform_row() -> None:
    t = from_ratings(np.full((1, 5), 5.0), [2], 1.0, True)
    np.testing.assert_allclose(t, [[0.25, 0.25, 0, 0.25, 0.25]])


def test_a_small_temperature_does_not_overflow() -> None:
    t = from_ratings(RATINGS.copy(), [0, 1], 1e-3, True)
    np.testing.assert_allclose(t, [[0, 0, 0, 1], [0, 0, 0.5, 0.5]], atol=1e-12)


@pytest.mark.parametrize("bad", [np.inf, -0.5, 10.5])
def test_ratings_outside_the_scale_are_refused(bad: float) -> None:
    ratings = RATINGS.copy()
    ratings[1, 2] = bad
    with pytest.raises(UserError, match=r"outside \[0, 10\]"):
        from_ratings(ratings, [0, 1], 1.0, True)


def test_rows_by_label() -> None:
    data = json.loads(json.dumps({"transition": [[0, 1, 0], [0.5, 0.5, 0]], "row_labels": [0, 2]}))
    transition = Transition.from_json(data)
    np.testing.assert_array_equal(transition.rows_for(np.array([2, 0, 2])), [[0.5, 0.5, 0], [0, 1, 0], [0.5, 0.5, 0]])
    with pytest.raises(KeyError):
        transition.rows_for(np.array([1]))


def test_what_was_not_rated_shares_the_tail() -> None:
    ratings = np.array([[10.0, 2.0, np.nan, np.nan, 5.0]])
    t = from_ratings(ratings, [0], 1.0, True, tail_mass=0.1)
    head = np.exp([2.0, 5.0])
    np.testing.assert_allclose(t[0, [1, 4]], 0.9 * head / head.sum())
    np.testing.assert_allclose(t[0, [2, 3]], 0.05)
    assert t[0, 0] == 0


def test_a_row_without_any_rating_is_uniform() -> None:
    t = from_ratings(np.array([[10.0, np.nan, np.nan]]), [0], 1.0, True, tail_mass=0.1)
    np.testing.assert_allclose(t, [[0, 0.5, 0.5]])


def test_nothing_is_likened_to_a_class_that_is_gone() -> None:
    t = from_ratings(RATINGS.copy(), [0, 1], 1.0, True, gone=[3])
    assert (t[:, 3] == 0).all()
    np.testing.assert_allclose(t.sum(1), 1)
    some = np.array([[10.0, np.nan, 3.0, np.nan]])
    t = from_ratings(some, [0], 1.0, True, tail_mass=0.1, gone=[3])
    np.testing.assert_allclose(t, [[0, 0.1, 0.9, 0]])
