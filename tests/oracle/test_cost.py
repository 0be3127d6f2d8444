"""What a fill costs: foretold by `megu plan`, and counted afterwards."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from stored_ratings import asking, job, refill, remember

from megu_dist.config.schema import OracleSettings
from megu_dist.oracle import cost, prompts, shortlist
from megu_dist.oracle.backends.embedding import EmbeddingSettings
from megu_dist.oracle.backends.uniform import UniformSettings
from megu_dist.oracle.base import Concept, Pair
from megu_dist.oracle.cost import Estimate
from megu_dist.oracle.fill import Spent, about
from megu_dist.oracle.ratings import RatingStore

TEN = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
THOUSAND = [f"class {i}" for i in range(1000)]


def estimate(folder: Path, settings: OracleSettings, rows: int, names: list[str], fine: bool = False) -> Estimate:
    known = about(settings)
    return cost.estimate(settings, known, rows, names, RatingStore(folder, known), fine)


@pytest.mark.parametrize(
    ("more", "rows", "names", "pairs", "calls"),
    [
        ({}, 1, TEN, 9, 18),
        ({}, 3, TEN, 27, 54),
        ({"both_orders": False}, 3, TEN, 27, 27),
        ({"phrasings": 3}, 1, TEN, 9, 54),
        ({"phrasings": 9}, 1, TEN, 9, 54),  # there are three wordings
        ({"phrasings": 2, "both_orders": False, "shortlist": 4}, 2, TEN, 8, 16),
        ({"shortlist": 9}, 2, TEN, 18, 36),
        ({"shortlist": 100}, 2, TEN, 18, 36),
        ({"shortlist": 32}, 10, THOUSAND, 320, 640),
        ({"shortlist": 32, "both_orders": False}, 10, THOUSAND, 320, 320),
        ({}, 10, THOUSAND, 9990, 19980),
    ],
)
def test_pairs_and_calls(
    tmp_path: Path, more: dict[str, Any], rows: int, names: list[str], pairs: int, calls: int
) -> None:
    found = estimate(tmp_path, asking(**more), rows, names)
    assert (found.pairs, found.calls) == (pairs, calls)
    assert found.full_matrix == len(names) * (len(names) - 1) // 2
    assert (found.stored, found.measured, found.seconds, found.price) == (0, False, None, None)


@pytest.mark.parametrize("size", [0, 3, 8, 9, 10])
@pytest.mark.parametrize("fine", [False, True])
def test_pairs_are_as_many_as_there_are_candidates(tmp_path: Path, size: int, fine: bool) -> None:
    """A fine class can be like each of the ten; a class only like the nine others."""
    import numpy as np

    own = [-1, -1] if fine else [2, 5]
    found = shortlist.candidates(size, own, 10, [np.random.default_rng(0).random((2, 10))])
    assert estimate(tmp_path, asking(shortlist=size), 2, TEN, fine).pairs == sum(map(len, found))


def test_a_symmetric_oracle_needs_one_order_and_no_tokens(tmp_path: Path) -> None:
    settings = EmbeddingSettings(name="embedding", price_prompt=1.0)
    assert estimate(tmp_path, settings, 2, TEN) == Estimate(18, 45, 18, 0, 0, 0, None, 0.0, False)
    assert estimate(tmp_path, UniformSettings(name="uniform"), 2, TEN).prompt_tokens == 0


def test_tokens_and_price_before_the_first_rating_follow_from_text_and_images(tmp_path: Path) -> None:
    found = estimate(tmp_path, asking(images=2, image_tokens=100, price_prompt=3.0, price_answer=12.0), 2, TEN)
    longest = Pair(Concept("three"), Concept("three"))
    letters = len(prompts.opening(longest, prompts.ANSWER_DIGIT)) + len(prompts.closing(longest))
    each = letters / 4 + 2 * 2 * 100
    assert found.prompt_tokens == round(36 * each)
    assert 200 < letters < 800
    assert found.answer_tokens == 36
    assert found.price == pytest.approx((36 * each * 3 + 36 * 12) / 1e6)


def test_stored_ratings_tell_tokens_seconds_and_price(tmp_path: Path) -> None:
    settings = asking(price_prompt=3.0, price_answer=12.0)
    known = about(settings)
    assert remember(tmp_path, settings, job(TEN, [0]), lambda *_: 5.0, tokens=(210, 4)) == 18
    store = RatingStore(tmp_path, known)
    entries = [json.loads(line) | {"time": 1000 + 2 * i} for i, line in enumerate(store.path.read_text().splitlines())]
    store.path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    found = estimate(tmp_path, settings, 3, TEN)
    assert (found.calls, found.stored, found.measured) == (54, 18, True)
    assert (found.prompt_tokens, found.answer_tokens, found.seconds) == (54 * 210, 54 * 4, 54 * 2)
    assert found.price == pytest.approx((54 * 210 * 3 + 54 * 4 * 12) / 1e6)
    assert estimate(tmp_path, asking(mode="json"), 3, TEN).measured  # another prompt of the same model
    assert not estimate(tmp_path, asking(model="other"), 3, TEN).measured


def test_the_price_afterwards_is_tokens_times_price() -> None:
    spent = Spent(calls=3, prompt_tokens=1_000_000, answer_tokens=2_000)
    assert spent.price(asking()) is None
    assert spent.price(asking(price_prompt=2.5)) == 2.5
    assert spent.price(asking(price_answer=10.0)) == 0.02
    assert spent.price(asking(price_prompt=2.5, price_answer=10.0)) == 2.52


def test_ratings_from_the_store_are_free(tmp_path: Path) -> None:
    settings = asking(price_prompt=2.0, price_answer=2.0)
    remember(tmp_path / "s", settings, job(TEN, [0]), lambda first, second, _: float(len(second)), tokens=(100, 1))
    info, data = refill(settings, job(TEN, [0]), tmp_path / "s", tmp_path)
    for found in (info, data):
        assert (found["pairs"], found["calls"], found["reused"], found["cost"]) == (9, 0, 18, 0.0)
        assert found["prompt_tokens"] == found["answer_tokens"] == 0


@pytest.fixture
def plan(run_megu: Any, cache_dir: Path, tmp_path: Path) -> Any:
    """``megu plan`` for the digits: name → value, as printed."""

    def call(*words: str) -> dict[str, str]:
        given = ["data=digits", f"data.cache_dir={cache_dir}", f"run.dir={tmp_path / 'runs'}", "forget.classes=[3,7]"]
        done = run_megu(["plan", *given, *words])
        assert done.code == 0, done.output
        pairs = [line.split("  ", 1) for line in done.output.splitlines() if "  " in line]
        return {name.strip(): value.strip() for name, value in pairs}

    return call


def test_plan_prints_it(plan: Any, tmp_path: Path) -> None:
    words = ["oracle=openai", "oracle.model=m", "oracle.base_url=http://127.0.0.1:9/v1", "oracle.phrasings=2"]
    said = plan(*words, "oracle.price_prompt=3", "oracle.price_answer=12")
    assert said["pairs rated"] == "18 (all pairs of classes: 45)"
    assert said["oracle calls"] == "at most 72 (0 ratings of this oracle are stored already)"
    assert said["answer tokens"] == "72"
    assert said["oracle seconds"] == "unknown before the first ratings"
    tokens, basis = said["prompt tokens"].split(" ", 1)
    assert basis == "(estimated from the text's length)"
    assert float(said["price"]) == pytest.approx((int(tokens.replace(",", "")) * 3 + 72 * 12) / 1e6, abs=1e-4)
    assert said["forget concepts"] == "2"
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_plan_knows_what_earlier_fills_took(plan: Any, tmp_path: Path) -> None:
    words = [
        "oracle=openai",
        "oracle.model=m",
        "oracle.base_url=http://127.0.0.1:9/v1",
        f"oracle.store={tmp_path / 's'}",
    ]
    remember(tmp_path / "s", asking(), job(TEN, [0]), lambda *_: 5.0, tokens=(210, 4))
    said = plan(*words)
    assert said["oracle calls"] == "at most 36 (18 ratings of this oracle are stored already)"
    assert said["prompt tokens"] == f"{36 * 210:,} (from stored ratings)"
    assert said["answer tokens"] == f"{36 * 4:,}"
    assert math.isfinite(float(said["oracle seconds"].replace(",", "")))
    assert said["price"].startswith("no price given")


def test_plan_of_an_oracle_that_cannot_work_says_so(run_megu: Any, cache_dir: Path, tmp_path: Path) -> None:
    given = ["data=digits", f"data.cache_dir={cache_dir}", f"run.dir={tmp_path / 'runs'}", "forget.classes=[3]"]
    for words, part in (
        (["oracle=openai"], "oracle.model is not set"),
        (["oracle=embeding"], "'embedding'"),
        (["oracle.shortlist=-1"], "oracle.shortlist=-1"),
        (["forget.classes=[thre]"], "'three'"),
    ):
        done = run_megu(["plan", *given, *words])
        assert done.code == 2, done.output
        assert part in done.output
        assert "Traceback" not in done.output
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())
