"""The weighted mean of other oracles."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megu_dist.errors import UserError
from megu_dist.oracle.backends.embedding import EmbeddingOracle, EmbeddingSettings
from megu_dist.oracle.backends.ensemble import EnsembleOracle, EnsembleSettings, members
from megu_dist.oracle.base import About, Concept, Pair, Rating

PAIRS = [Pair(Concept(a), Concept(b)) for a, b in (("cat", "dog"), ("cat", "truck"), ("ship", "ship"), ("x", "cat"))]


def settings(**named: Any) -> EnsembleSettings:
    return EnsembleSettings(name="ensemble", members=named)


def rate(oracle: EnsembleOracle, pairs: list[Pair]) -> list[Rating]:
    return asyncio.run(oracle.rate(pairs))


@pytest.fixture(scope="module")
def by_name() -> list[float]:
    return [rating.value for rating in EmbeddingOracle(EmbeddingSettings(name="embedding")).rate(PAIRS)]


def test_a_rating_is_the_weighted_mean(by_name: list[float]) -> None:
    oracle = EnsembleOracle(settings(embedding={"weight": 3}, uniform={}))
    expected = [(3 * value + 5) / 4 for value in by_name]
    assert [rating.value for rating in rate(oracle, PAIRS)] == pytest.approx(expected, abs=1e-4)
    assert [rate(oracle, [pair])[0].value for pair in PAIRS] == pytest.approx(expected, abs=1e-4)


def test_a_member_of_weight_zero_says_nothing(by_name: list[float]) -> None:
    oracle = EnsembleOracle(settings(embedding=None, uniform={"weight": 0}))
    assert [rating.value for rating in rate(oracle, PAIRS)] == pytest.approx(by_name, abs=1e-4)


@pytest.fixture
def table(tmp_path: Path) -> str:
    """Confusions of "cat" alone, so that a member that reads them has no answer to other questions."""
    probs = pa.FixedSizeListArray.from_arrays(pa.array([0.9, 0.1, 0.0]), 3)
    columns = {"label": pa.array([0]), "name": pa.array(["cat"]), "count": pa.array([9]), "probs": probs}
    pq.write_table(
        pa.table(columns).replace_schema_metadata({"classes": "cat\ndog\ntruck"}), tmp_path / "table.parquet"
    )
    return str(tmp_path / "table.parquet")


def test_a_member_without_an_answer_is_left_out(table: str) -> None:
    oracle = EnsembleOracle(settings(confusion={"path": table, "weight": 3}, uniform={}))
    found = [rating.value for rating in rate(oracle, PAIRS)]
    assert found == pytest.approx([(3 * 10 + 5) / 4, (3 * 0 + 5) / 4, 5, 5])
    alone = EnsembleOracle(settings(confusion={"path": table}))
    assert [rating.value == rating.value for rating in rate(alone, PAIRS)] == [True, True, False, False]


def test_what_it_says_of_itself_is_what_its_members_say(table: str) -> None:
    def about(**named: Any) -> About:
        return EnsembleOracle.about(settings(**named))

    known = about(embedding={}, uniform={"weight": 2})
    assert known.id != about(embedding={}, uniform={}).id
    assert known.id.startswith("ensemble:1*embedding:")
    assert known.symmetric
    assert not known.flat
    assert "never sees an image" in known.stand_in
    assert known.prompts != about(embedding={"template": "{}"}, uniform={"weight": 2}).prompts
    assert not about(embedding={}, confusion={"path": table}).symmetric
    assert about(uniform={}).flat


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ({"embeding": {}}, "unknown oracle 'embeding': did you mean 'embedding'"),
        (
            {"embedding": {"templat": "{}"}},
            "oracle.members.embedding.templat: no such setting; did you mean 'template'",
        ),
        ({"embedding": {"wieght": 2}}, "oracle.members.embedding.wieght: no such setting; did you mean 'weight'"),
        ({"embedding": {"images": "two"}}, "oracle.members.embedding.images: Value 'two'"),
        ({"embedding": {"weight": -1}}, "oracle.members.embedding.weight=-1"),
        ({"embedding": {"weight": "much"}}, "oracle.members.embedding.weight='much'"),
        ({"embedding": {"weight": float("nan")}}, "oracle.members.embedding.weight=nan"),
        ({"embedding": 2}, "oracle.members.embedding=2: must be settings"),
        ({"embedding": {"weight": 0}}, "oracle.members: name at least one oracle with a weight above 0"),
        ({}, "oracle.members: name at least one oracle"),
        ({"ensemble": {}}, "an ensemble cannot be a member of itself"),
        ({"mllm": {}}, "oracle=mllm needs oracle.path"),
    ],
)
def test_members_that_cannot_work_are_refused(named: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as refusal:
        EnsembleOracle.about(settings(**named))
    assert told in str(refusal.value)


def test_settings_of_members_have_their_declared_types() -> None:
    (found, weight), _ = members(settings(embedding={"weight": 2, "images": 3}, uniform=None))
    assert (type(found), found.name, found.images, weight) == (EmbeddingSettings, "embedding", 3, 2.0)


def test_requests_that_overlap_enter_a_member_one_at_a_time() -> None:
    oracle = EnsembleOracle(settings(embedding={}))
    inside, most = [0], [0]
    guard, rate_now = threading.Lock(), oracle.backends[0].rate

    def watched(pairs: list[Pair]) -> list[Rating]:
        with guard:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        try:
            return rate_now(pairs)
        finally:
            with guard:
                inside[0] -= 1

    oracle.backends[0].rate = watched

    async def overlap() -> list[list[Rating]]:
        many = [[Pair(Concept(f"thing {i}"), Concept(f"other {i}"))] for i in range(20)]
        return await asyncio.gather(*(oracle.rate(pairs) for pairs in many))

    assert len(asyncio.run(overlap())) == 20
    assert most == [1]
