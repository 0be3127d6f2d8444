"""The embedded oracles' opinions."""

from __future__ import annotations

from pathlib import Path

import pytest

from megu_dist.errors import UserError
from megu_dist.oracle.backends.embedding import EmbeddingOracle, EmbeddingSettings
from megu_dist.oracle.backends.uniform import UniformOracle, UniformSettings
from megu_dist.oracle.base import Concept, Oracle, Pair

CLOSER = [
    ("shirt", "T-shirt", "ankle boot"),
    ("cat", "dog", "truck"),
    ("truck", "automobile", "frog"),
    ("deer", "horse", "airplane"),
]


def values(oracle: Oracle, pairs: list[tuple[str, str]]) -> list[float]:
    rated = oracle.rate([Pair(Concept(a), Concept(b)) for a, b in pairs])
    assert isinstance(rated, list)
    return [rating.value for rating in rated]


@pytest.fixture(scope="module")
def embedding() -> EmbeddingOracle:
    return EmbeddingOracle(EmbeddingSettings(name="embedding"))


@pytest.mark.parametrize(("concept", "near", "far"), CLOSER)
def test_near_concepts_are_rated_higher(embedding: EmbeddingOracle, concept: str, near: str, far: str) -> None:
    high, low = values(embedding, [(concept, near), (concept, far)])
    assert 10 >= high > low + 0.5
    assert low >= 0


def test_ratings_do_not_depend_on_the_batch(embedding: EmbeddingOracle) -> None:
    pairs = [(a, b) for a, *others in CLOSER for b in others]
    together = values(embedding, pairs)
    fresh = EmbeddingOracle(EmbeddingSettings(name="embedding"))
    assert [values(fresh, [pair])[0] for pair in reversed(pairs)][::-1] == pytest.approx(together, abs=1e-4)
    assert values(embedding, [(b, a) for a, b in pairs]) == pytest.approx(together, abs=1e-4)
    assert values(embedding, [("cat", "cat")])[0] == pytest.approx(10, abs=1e-4)


def test_it_says_what_it_is() -> None:
    known = EmbeddingOracle.about(EmbeddingSettings(name="embedding"))
    assert "stand-in" in known.stand_in
    assert known.symmetric
    assert known.id.startswith("embedding:")
    assert len(known.id) > len("embedding:")


def test_a_model_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"oracle\.path="):
        EmbeddingOracle(EmbeddingSettings(name="embedding", path=str(tmp_path)))


def test_uniform() -> None:
    oracle = UniformOracle(UniformSettings(name="uniform"))
    assert values(oracle, [("a", "b"), ("a", "a")]) == [5.0, 5.0]
    known = UniformOracle.about(UniformSettings(name="uniform"))
    assert known.flat
    assert known.stand_in
