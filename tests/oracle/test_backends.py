"""The embedded oracles' opinions."""

from __future__ import annotations

from pathlib import Path

import pytest

from megu_dist.errors import UserError
from megu_dist.oracle.backends.embedding import EmbeddingOracle, EmbeddingSettings
from megu_dist.oracle.backends.uniform import UniformOracle, UniformSettings
from megu_dist.oracle.base import Concept

CLOSER = [
    ("shirt", "T-shirt", "ankle boot"),
    ("cat", "dog", "truck"),
    ("truck", "automobile", "frog"),
    ("deer", "horse", "airplane"),
]


@pytest.fixture(scope="module")
def embedding() -> EmbeddingOracle:
    return EmbeddingOracle(EmbeddingSettings(name="embedding"))


@pytest.mark.parametrize(("concept", "near", "far"), CLOSER)
def test_near_concepts_are_rated_higher(embedding: EmbeddingOracle, concept: str, near: str, far: str) -> None:
    high, low = embedding.rate([(Concept(concept), Concept(near)), (Concept(concept), Concept(far))])
    assert 10 >= high > low + 0.5
    assert low >= 0


def test_ratings_do_not_depend_on_the_batch(embedding: EmbeddingOracle) -> None:
    pairs = [(Concept(a), Concept(b)) for a, *others in CLOSER for b in others]
    together = embedding.rate(pairs)
    fresh = EmbeddingOracle(EmbeddingSettings(name="embedding"))
    assert [fresh.rate([pair])[0] for pair in reversed(pairs)][::-1] == pytest.approx(together, abs=1e-4)
    assert embedding.rate([(b, a) for a, b in pairs]) == pytest.approx(together, abs=1e-4)
    assert embedding.rate([(Concept("cat"), Concept("cat"))])[0] == pytest.approx(10, abs=1e-4)


def test_it_says_what_it_is(embedding: EmbeddingOracle) -> None:
    assert "stand-in" in embedding.stand_in
    assert embedding.identity.startswith("embedding:")
    assert len(embedding.identity) > len("embedding:")


def test_a_model_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"oracle\.path="):
        EmbeddingOracle(EmbeddingSettings(name="embedding", path=str(tmp_path)))


def test_uniform() -> None:
    oracle = UniformOracle(UniformSettings(name="uniform"))
    ratings = oracle.rate([(Concept("a"), Concept("b")), (Concept("a"), Concept("a"))])
    assert ratings == [5.0, 5.0]
    assert oracle.stand_in
