"""Energy shares, distances, CKA and maps in closed form."""

from __future__ import annotations

import numpy as np
import pytest

from megu_dist.analysis import geometry, maps
from megu_dist.errors import UserError

RNG = np.random.default_rng(0)


def test_cka_of_the_same_up_to_rotation_and_scale_is_one() -> None:
    x = RNG.normal(size=(200, 8))
    turn = np.linalg.qr(RNG.normal(size=(8, 8)))[0]
    assert geometry.linear_cka(x, x) == pytest.approx(1)
    assert geometry.linear_cka(x, 3 * x @ turn + 5) == pytest.approx(1)


def test_cka_of_unrelated_features() -> None:
    # Exactly uncorrelated columns give 0; independent ones about D / N.
    basis = np.linalg.qr(np.column_stack([np.ones(60), RNG.normal(size=(60, 8))]))[0][:, 1:]
    assert geometry.linear_cka(basis[:, :4], basis[:, 4:]) == pytest.approx(0, abs=1e-12)
    x, y = RNG.normal(size=(4000, 8)), RNG.normal(size=(4000, 8))
    assert geometry.linear_cka(x, y) < 0.01
    assert geometry.linear_cka(x, np.column_stack([x[:, :4], y[:, :4]])) == pytest.approx(0.5, abs=0.05)


def test_cka_is_the_same_from_either_gram_matrix() -> None:
    x, y = RNG.normal(size=(20, 30)), RNG.normal(size=(20, 25))
    centred = [v - v.mean(0) for v in (x, y)]
    cross = np.linalg.norm(centred[1].T @ centred[0]) ** 2
    norm = np.linalg.norm(centred[0].T @ centred[0]) * np.linalg.norm(centred[1].T @ centred[1])
    assert geometry.linear_cka(x, y) == pytest.approx(cross / norm)
    assert geometry.linear_cka(y, x) == pytest.approx(cross / norm)
    assert np.isnan(geometry.linear_cka(np.ones((5, 2)), x[:5]))


def test_energy_of_constructed_directions() -> None:
    axes = np.eye(6)
    centre = np.full(6, 2.0)
    features = centre + 3 * axes[[0, 0]] + 4 * axes[[1, 1]]  # 9 along the neighbour, 16 along its own
    own = (3 * axes[0] + 4 * axes[1]) / 5
    found = geometry.energy(features, centre, own, axes[:1])
    assert (found.shared, found.specific, found.own) == pytest.approx((9 / 25, 16 / 25, 16 / 25))
    assert found.chance == pytest.approx(1 / 6)
    inside = geometry.energy(features, centre, own, axes[:2])
    assert (inside.shared, inside.own) == pytest.approx((1, 0))
    apart = geometry.energy(features, centre, own, axes[4:])
    assert (apart.shared, apart.own) == pytest.approx((0, 1))


def test_energy_shares_sum_to_one() -> None:
    for _ in range(5):
        features = RNG.normal(size=(30, 7)) + RNG.normal(size=7)
        ways = geometry.directions(RNG.normal(size=(6, 7)))
        found = geometry.energy(features, np.zeros(7), ways[0], ways[1:4])
        assert found.shared + found.specific == pytest.approx(1)
        assert 0 < found.own < found.specific


def test_neighbours_that_say_the_same_count_once() -> None:
    way = np.array([[1.0, 0, 0, 0], [1.0, 0, 0, 0]])
    features = np.array([[1.0, 1, 0, 0]])
    found = geometry.energy(features, np.zeros(4), np.array([0, 1.0, 0, 0]), way)
    assert (found.shared, found.own, found.chance) == pytest.approx((0.5, 0.5, 0.25))
    nothing = geometry.energy(np.zeros((3, 4)), np.zeros(4), np.zeros(4), way)
    assert (nothing.shared, nothing.specific, nothing.own) == (0, 0, 0)


def test_directions_and_distances() -> None:
    labels = np.repeat([0, 1, 2], 4)
    points = np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    noise = np.tile([[1, 0], [-1, 0], [0, 1], [0, -1]], (3, 1))
    centres = geometry.centroids(points[labels] + noise, labels, [0, 1, 2])
    np.testing.assert_allclose(centres, points)
    gap = geometry.distances(centres)
    np.testing.assert_allclose(gap[np.triu_indices(3, 1)], np.array([3, 4, 5]) / 4)
    ways = geometry.directions(centres)
    np.testing.assert_allclose(np.linalg.norm(ways, axis=1), 1)
    np.testing.assert_allclose(ways[0], -points.mean(0) / np.linalg.norm(points.mean(0)))
    np.testing.assert_allclose(geometry.distances(5 * centres), gap)


def test_maps() -> None:
    features = np.concatenate([RNG.normal(size=(40, 6)) + 6 * np.eye(6)[c] for c in range(3)])
    labels = np.repeat([0, 1, 2], 40)
    flat, share = maps.flatten(features, "pca", 0)
    assert flat.shape == (120, 2)
    assert share is not None
    assert 0.5 < share < 1
    turned = flat @ np.array([[0.0, -1.0], [-1.0, 0.0]]) + 7  # a mirror, a quarter turn and a shift
    back = maps.aligned(turned, flat, labels)
    np.testing.assert_allclose(back - back.mean(0), flat - flat.mean(0), atol=1e-9)
    narrow, all_of_it = maps.flatten(features[:, :1], "pca", 0)
    assert narrow.shape == (120, 2)
    assert all_of_it == pytest.approx(1)
    maps.check("pca")


def test_a_map_whose_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install umap-learn"):
        maps.check("umap")
