"""Perturbing labels: the distribution in closed form, and draws from it."""

from __future__ import annotations

import numpy as np
import pytest

from megu_dist.perturb.labels import draw_labels, id_seeds, label_distribution, sharpened

RNG = np.random.default_rng(0)
P = RNG.dirichlet(np.ones(5), 4)
T = RNG.dirichlet(np.ones(5), 4)
LABELS = np.array([0, 1, 0, 3])


def renormalised(values: np.ndarray, banned: list[list[int]]) -> np.ndarray:
    values = values.copy()
    for row, columns in enumerate(banned):
        values[row, columns] = 0
    return values / values.sum(1, keepdims=True)


def test_sharpened_shares_are_those_of_two_classes() -> None:
    shares = np.array([0.0, 0.5, 0.8, 1.0])
    np.testing.assert_allclose(sharpened(shares, 1.0), shares)
    np.testing.assert_allclose(sharpened(shares, 2.0), [0, 0.5, 0.64 / 0.68, 1])


def test_without_kappa_it_is_the_row_of_t() -> None:
    q = label_distribution(np.log(P), T, LABELS, [], 0.0)
    np.testing.assert_allclose(q, renormalised(T, [[0], [1], [0], [3]]))


def test_with_a_uniform_t_it_is_the_models_own_distribution() -> None:
    q = label_distribution(np.log(P), np.full((4, 5), 0.2), LABELS, [], 1.0)
    np.testing.assert_allclose(q, renormalised(P, [[0], [1], [0], [3]]))


def test_product_of_t_and_a_power_of_p() -> None:
    q = label_distribution(np.log(P), T, LABELS, [2], 0.5)
    np.testing.assert_allclose(q, renormalised(T * np.sqrt(P), [[0, 2], [1, 2], [0, 2], [3, 2]]))


@pytest.mark.parametrize("forgotten", [[0], [0, 1, 3], [4]])
def test_never_the_label_nor_a_forgotten_class(forgotten: list[int]) -> None:
    q = label_distribution(np.log(P), T, LABELS, forgotten, 1.0)
    assert (q[:, forgotten] == 0).all()
    assert (q[np.arange(4), LABELS] == 0).all()
    np.testing.assert_allclose(q.sum(1), 1)
    drawn = draw_labels(np.repeat(q, 500, 0), [str(i) for i in range(2000)], 0, 2, "sample")
    assert not np.isin(drawn, forgotten).any()
    assert (drawn != np.repeat(LABELS, 500)[:, None]).all()


def test_a_kept_label_is_as_likely_as_asked() -> None:
    """The other classes share the rest as without it; a label that is forgotten is not kept."""
    keep = np.array([0.9, 0.0, 0.3, 0.5])
    q = label_distribution(np.log(P), T, LABELS, [3], 0.5, keep)
    without = label_distribution(np.log(P), T, LABELS, [3], 0.5)
    own = keep[:3]
    np.testing.assert_allclose(q[np.arange(3), LABELS[:3]], own)
    np.testing.assert_allclose(q.sum(1), 1)
    others = without[:3] * (1 - own)[:, None]
    others[np.arange(3), LABELS[:3]] = own
    np.testing.assert_allclose(q[:3], others)
    np.testing.assert_allclose(q[3], without[3])


def test_where_t_is_silent_the_model_decides() -> None:
    t = T.copy()
    t[1] = [0, 1, 0, 0, 0]  # all weight on the label itself
    q = label_distribution(np.log(P), t, LABELS, [4], 2.0)
    np.testing.assert_allclose(q[1], renormalised(P, [[0], [1, 4], [0], [3]])[1])
    np.testing.assert_allclose(q[0], renormalised(t * P**2, [[0, 4], [1], [0], [3]])[0])


def test_certain_models_do_not_underflow() -> None:
    log_probs = np.full((4, 5), -2000.0)
    log_probs[np.arange(4), LABELS] = 0
    log_probs[:, 2] = -1990
    q = label_distribution(log_probs, T, LABELS, [], 1.0)
    assert np.isfinite(q).all()
    assert (q.argmax(1) == 2).all()


def test_draws_follow_the_distribution() -> None:
    q = np.array([0.5, 0.0, 0.3, 0.15, 0.05])
    n = 20_000
    drawn = draw_labels(np.tile(q, (n, 1)), [f"id {i}" for i in range(n)], 0, 2, "sample")
    for draw in range(2):
        counts = np.bincount(drawn[:, draw], minlength=5)
        assert counts[1] == 0
        assert ((counts - n * q)[q > 0] ** 2 / (n * q[q > 0])).sum() < 25  # χ² with 3 degrees of freedom: p ≈ 10⁻⁵
    same = (drawn[:, 0] == drawn[:, 1]).mean()
    assert abs(same - (q**2).sum()) < 0.02  # draws are independent


def test_draws_belong_to_the_id() -> None:
    q = RNG.dirichlet(np.ones(6), 100)
    ids = [f"train/{i:08d}" for i in range(100)]
    drawn = draw_labels(q, ids, 5, 3, "sample")
    order = RNG.permutation(100)
    assert np.array_equal(draw_labels(q[order], [ids[i] for i in order], 5, 3, "sample"), drawn[order])
    assert np.array_equal(draw_labels(q[:7], ids[:7], 5, 3, "sample"), drawn[:7])
    assert np.array_equal(draw_labels(q, ids, 5, 1, "sample"), drawn[:, :1])  # more draws change no earlier one
    assert not np.array_equal(draw_labels(q, ids, 6, 3, "sample"), drawn)
    assert len(set(id_seeds(ids).tolist())) == 100


def test_argmax() -> None:
    q = RNG.dirichlet(np.ones(6), 10)
    drawn = draw_labels(q, [str(i) for i in range(10)], 0, 3, "argmax")
    assert np.array_equal(drawn, np.repeat(q.argmax(1)[:, None], 3, 1))
