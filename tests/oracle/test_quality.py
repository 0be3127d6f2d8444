"""Rows that cannot be believed: how they are told, and what a fill does about them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from chat_server import KEY_ENV, Asked, ChatServer, Reply, opinion, said
from stored_ratings import asking, job, refill, remember

from megu_dist.config.schema import OracleSettings
from megu_dist.errors import UserError
from megu_dist.oracle.backends.embedding import EmbeddingSettings
from megu_dist.oracle.backends.uniform import UniformSettings
from megu_dist.oracle.quality import RowQuality, entropy, row_quality

NAN = float("nan")
NAMES = ["cat", "dog", "frog", "truck"]


def quality(answers: object, max_refused: float = 0.2, flat: bool = False) -> RowQuality:
    return row_quality("cat", "o", np.array(answers, np.float64), max_refused, flat)


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_one_answer_per_pair() -> None:
    found = quality([[[2.0]], [[5.5]], [[3.0]]])
    assert (found.rated, found.refused, found.spread) == (3, 0, 3.5)
    assert found.asymmetry is found.disagreement is None
    assert found.flags == []


def test_asymmetry_is_the_mean_difference_between_the_orders() -> None:
    found = quality([[[2.0], [4.0]], [[5.0], [5.5]], [[1.0], [0.0]]])
    assert found.asymmetry == pytest.approx((2 + 0.5 + 1) / 3, abs=1e-4)
    assert found.spread == pytest.approx(5.25 - 0.5)
    assert found.disagreement is None


def test_asymmetry_is_of_the_means_over_wordings() -> None:
    found = quality([[[2.0, 4.0], [5.0, 5.0]], [[8.0, 6.0], [6.0, 8.0]]])
    assert found.asymmetry == pytest.approx((2 + 0) / 2)


def test_disagreement_is_the_mean_deviation_between_wordings() -> None:
    found = quality([[[2.0, 4.0]], [[5.0, 5.0]], [[1.0, 7.0]]])
    assert found.disagreement == pytest.approx((1 + 0 + 3) / 3, abs=1e-4)
    three = quality([[[1.0, 2.0, 6.0], [3.0, 4.0, 2.0]]])  # over the orders' means 2, 3, 4
    assert three.disagreement == pytest.approx(math.sqrt(2 / 3), abs=1e-4)


def test_what_was_not_answered_counts_in_no_mean() -> None:
    found = quality([[[2.0, NAN], [4.0, 6.0]], [[NAN, NAN], [NAN, NAN]], [[7.0, 7.0], [NAN, NAN]]], max_refused=0.5)
    assert (found.rated, found.refused) == (2, 1)
    assert found.asymmetry == pytest.approx(3.0)  # 2 against 5; the other two pairs lack an order
    assert found.spread == pytest.approx(7 - 4)
    assert found.flags == []


def test_entropy_is_one_for_uniform_and_zero_for_certain() -> None:
    assert entropy(np.full(7, 1 / 7)) == pytest.approx(1)
    assert entropy(np.array([0, 0.25, 0.25, 0.25, 0.25])) == pytest.approx(1)
    assert entropy(np.array([0.0, 1.0, 0.0])) == 0
    p = [0.5, 0.3, 0.2]
    assert entropy(np.array([*p, 0])) == pytest.approx(-sum(x * math.log(x) for x in p) / math.log(3))


# --- flags ------------------------------------------------------------------------------------------------------------


def test_equal_ratings_are_flagged_unless_that_is_the_oracles_nature() -> None:
    equal = [[[5.0]]] * 4
    assert quality(equal).flags == ["all 4 ratings are equal (5.00)"]
    assert quality(equal, flat=True).flags == []
    assert quality([[[5.0]], [[5.0]], [[NAN]], [[5.0]]], max_refused=0.3).flags == ["all 3 ratings are equal (5.00)"]
    assert quality([[[5.0]], [[5.001]]]).flags == []
    assert quality([[[5.0]]]).flags == []  # a single candidate says nothing either way


@pytest.mark.parametrize(("refused", "flagged"), [(0, False), (1, False), (2, False), (3, True), (10, True)])
def test_refusals_are_flagged_above_the_limit(refused: int, flagged: bool) -> None:
    answers = [[[NAN if i < refused else float(i)]] for i in range(10)]
    found = quality(answers, max_refused=0.2)
    assert found.refused == refused
    assert found.flags == ([f"no usable answer for {refused} of 10 pairs"] if flagged else [])


def test_no_refusal_is_allowed_at_zero() -> None:
    assert quality([[[NAN]], [[1.0]], [[2.0]]], max_refused=0).flags == ["no usable answer for 1 of 3 pairs"]


# --- what a fill does -------------------------------------------------------------------------------------------------


def cat_is_dull(first: str, second: str, wording: int) -> float:
    """All alike for the cat, sensible for the truck."""
    return 4.0 if "cat" in (first, second) else float(len(first + second)) / 2


def asked_of(tmp_path: Path, **more: object) -> OracleSettings:
    """An oracle that has answered: the cat's row is degenerate, the truck's is not; the fallback is fine."""
    settings = asking(**more)
    work = job(NAMES, [0, 3])
    remember(tmp_path / "s", settings, work, cat_is_dull)
    near = {frozenset({"cat", "dog"}): 9.0, frozenset({"cat", "frog"}): 3.0, frozenset({"cat", "truck"}): 1.0}
    remember(
        tmp_path / "s", EmbeddingSettings(name="embedding"), job(NAMES, [0]), lambda a, b, _: near[frozenset({a, b})]
    )
    return settings


def test_a_degenerate_row_stops_the_fill(tmp_path: Path) -> None:
    settings = asked_of(tmp_path)
    with pytest.raises(UserError) as error:
        refill(settings, job(NAMES, [0, 3]), tmp_path / "s", tmp_path)
    for part in ("1 of 2 rows", "'cat': all 3 ratings are equal (4.00)", "on_degenerate=fallback", "keep"):
        assert part in str(error.value)
    assert "'truck'" not in str(error.value)
    assert not (tmp_path / "transition.json").exists()


def test_a_degenerate_row_that_is_kept_is_flagged(tmp_path: Path) -> None:
    settings = asked_of(tmp_path, on_degenerate="keep")
    info, data = refill(settings, job(NAMES, [0, 3]), tmp_path / "s", tmp_path)
    assert info["flagged_rows"] == ["cat"]
    assert [row["flags"] for row in data["quality"]] == [["all 3 ratings are equal (4.00)"], []]
    assert data["transition"][0] == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3])
    assert data["quality"][0]["entropy"] == 1.0
    assert data["quality"][1]["entropy"] < 1.0


def test_a_degenerate_row_falls_back_and_says_so(tmp_path: Path) -> None:
    settings = asked_of(tmp_path, on_degenerate="fallback")
    info, data = refill(settings, job(NAMES, [0, 3]), tmp_path / "s", tmp_path)
    assert info["flagged_rows"] == ["cat"]
    cat, truck = data["quality"]
    assert cat["source"] == "embedding"
    assert cat["flags"] == ["openai: all 3 ratings are equal (4.00)"]
    assert (truck["source"], truck["flags"]) == ("openai", [])
    assert data["ratings"] == [[10, 9, 3, 1], [4, 4, 4.5, 10]]
    weights = np.exp([9.0, 3.0, 1.0])
    assert data["transition"][0] == pytest.approx([0, *(weights / weights.sum())])


def test_a_fallback_that_is_degenerate_itself_stops_the_fill(tmp_path: Path) -> None:
    settings = asked_of(tmp_path, on_degenerate="fallback", fallback="embedding")
    embedded = EmbeddingSettings(name="embedding")
    remember(tmp_path / "s", embedded, job(NAMES, [0]), lambda *_: 2.0)  # the newest answer counts
    with pytest.raises(UserError, match=r"oracle\.fallback=embedding did no better \('cat': all 3 ratings"):
        refill(settings, job(NAMES, [0, 3]), tmp_path / "s", tmp_path)


def test_equal_ratings_by_design_are_no_fault(tmp_path: Path) -> None:
    settings = UniformSettings(name="uniform")
    remember(tmp_path / "s", settings, job(NAMES, [0]), lambda *_: 5.0)
    info, data = refill(settings, job(NAMES, [0]), tmp_path / "s", tmp_path)
    assert info["flagged_rows"] == data["quality"][0]["flags"] == []


def test_orders_and_wordings_are_averaged_and_their_spread_is_reported(tmp_path: Path) -> None:
    settings = asking(phrasings=3)
    base = {"dog": 8.0, "frog": 4.0, "truck": 1.0}

    def answer(first: str, second: str, wording: int) -> float:
        other = second if first == "cat" else first
        return base[other] + (0.5 if first == "cat" else -0.5) + (wording - 1) * 0.3

    assert remember(tmp_path / "s", settings, job(NAMES, [0]), answer) == 3 * 2 * 3
    info, data = refill(settings, job(NAMES, [0]), tmp_path / "s", tmp_path)
    assert (info["calls"], info["reused"]) == (0, 18)
    assert data["ratings"][0] == pytest.approx([10, 8, 4, 1])
    row = data["quality"][0]
    assert row["asymmetry"] == pytest.approx(1.0, abs=1e-4)
    assert row["disagreement"] == pytest.approx(0.3 * math.sqrt(2 / 3), abs=1e-4)
    assert row["spread"] == 7.0
    assert row["entropy"] == pytest.approx(entropy(np.array(data["transition"][0])), abs=1e-4)
    assert len(data["prompt_hash"].split("+")) == 3


def test_one_order_asks_half(tmp_path: Path) -> None:
    settings = asking(both_orders=False)
    assert remember(tmp_path / "s", settings, job(NAMES, [0]), lambda first, second, _: len(second)) == 3
    data = refill(settings, job(NAMES, [0]), tmp_path / "s", tmp_path)[1]
    assert data["ratings"] == [[10, 3, 4, 5]]
    assert data["quality"][0]["asymmetry"] is None


@pytest.mark.usefixtures("ray_local")
def test_refusals_stop_a_fill_and_are_asked_again_by_the_next(tmp_path: Path) -> None:
    willing = False

    def answer(asked: Asked) -> Reply:
        if "truck" in asked.pair and not willing:
            return said("I'd rather not.")
        return said(f'{{"rating": {opinion(*asked.pair):.3f}}}')

    with ChatServer(answer) as server:
        settings = asking(base_url=server.url, api_key_env=KEY_ENV, mode="json", attempts=1, max_refused=0.3)
        with pytest.raises(UserError, match="'cat': no usable answer for 1 of 3 pairs"):
            refill(settings, job(NAMES, [0]), tmp_path / "s", tmp_path)
        assert len(server.requests) == 6
        willing = True
        info, data = refill(settings, job(NAMES, [0]), tmp_path / "s", tmp_path)
        assert (info["calls"], info["reused"], len(server.requests)) == (2, 4, 8)
    assert data["quality"][0]["flags"] == []
    assert data["ratings"][0][3] == pytest.approx((opinion("cat", "truck") + opinion("truck", "cat")) / 2, abs=1e-3)
