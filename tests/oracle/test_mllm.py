"""Multimodal LLMs of several families, random and tiny, rated by constrained scoring."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_vlm
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from megu_dist.oracle import prompts
from megu_dist.oracle.backends import mllm
from megu_dist.oracle.backends.mllm import MllmOracle, MllmSettings
from megu_dist.oracle.base import Concept, Pair

pytestmark = pytest.mark.usefixtures("one_thread")

SPREAD = 0.5  # weights so large that the answers differ


def llava(folder: Path, template: str | None) -> Path:
    """Its tokenizer begins every text with <s>, which a chat template does itself where it is wanted."""
    return tiny_vlm.llava(folder, template, spread=SPREAD, words=tiny_vlm.tokenizer(ends="<s> $A"))


FAMILIES: dict[str, Callable[[Path], Path]] = {
    "llava": lambda folder: llava(folder, tiny_vlm.IN_PLACE),
    "llava, pictures first": lambda folder: llava(folder, tiny_vlm.PICTURES_FIRST),
    "llava, no template": lambda folder: llava(folder, None),
    "idefics3": lambda folder: tiny_vlm.idefics3(folder, spread=SPREAD),
    "aya_vision": lambda folder: tiny_vlm.aya_vision(folder, spread=SPREAD),
}
REUSING = [name for name in FAMILIES if name != "llava, pictures first"]
CLOSE = {"abs": 1e-3}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: build(tmp_path_factory.mktemp("vlm")) for name, build in FAMILIES.items()}


@pytest.fixture(scope="module", params=FAMILIES)
def oracle(request: pytest.FixtureRequest, folders: dict[str, Path]) -> MllmOracle:
    return load(folders[request.param])


def load(folder: Path, **options: Any) -> MllmOracle:
    """``min_mass`` 0: random weights may put next to nothing on the digits."""
    return MllmOracle(MllmSettings(name="mllm", path=str(folder), **{"min_mass": 0.0, **options}))


def concept(name: str, *shades: int) -> Concept:
    return Concept(name, "", tuple(tiny_vlm.picture(shade, seed) for seed, shade in enumerate(shades)))


CAT, DOG, CAR = concept("cat", 20, 60), concept("dog", 200, 90), concept("a rather long motor car", 120, 250)
PICTURED = [Pair(CAT, DOG), Pair(CAT, CAR), Pair(CAT, concept("ox", 7, 8)), Pair(DOG, CAT), Pair(CAT, DOG, 1),
            Pair(concept("cat", 250, 130), DOG), Pair(concept("cat", 250, 130), CAR)]  # fmt: skip
TEXT = [Pair(Concept(p.first.name), Concept(p.second.name, "of metal"), p.phrasing) for p in PICTURED]
UNEVEN = [Pair(CAT, Concept("dog")), Pair(Concept("cat"), DOG), Pair(CAT, concept("dog", 200)), Pair(CAT, DOG)]


def values(oracle: MllmOracle, pairs: list[Pair]) -> list[float]:
    return [rating.value for rating in oracle.rate(pairs)]


@pytest.mark.parametrize("pairs", [PICTURED, TEXT, UNEVEN + TEXT], ids=["pictures", "text", "mixed"])
def test_a_rating_does_not_depend_on_its_batch(oracle: MllmOracle, pairs: list[Pair]) -> None:
    together = values(oracle, pairs)
    assert all(0 <= value <= 10 for value in together)
    assert np.ptp(together) > 0.02  # they are not all alike, so that equality says something
    assert [values(oracle, [pair])[0] for pair in pairs] == pytest.approx(together, **CLOSE)
    order = np.random.default_rng(0).permutation(len(pairs))
    shuffled = values(oracle, [pairs[i] for i in order])
    assert [shuffled[place] for place in np.argsort(order)] == pytest.approx(together, **CLOSE)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("pair", [PICTURED[1], TEXT[4], UNEVEN[1]], ids=["pictures", "text", "one side"])
def test_a_rating_is_the_expectation_over_digits_corrected_by_neutral_pairs(
    oracle: MllmOracle, pair: Pair, weight: float
) -> None:
    processor = AutoProcessor.from_pretrained(oracle.settings.path)
    model = AutoModelForImageTextToText.from_pretrained(oracle.settings.path).eval()
    digits = processor.tokenizer.convert_tokens_to_ids([str(digit) for digit in range(10)])

    def answer(asked: Pair) -> tuple[np.ndarray, int]:
        images = [*mllm._pictures(asked.first), *mllm._pictures(asked.second)]
        given = {"images": [images]} if images else {}
        start = processor.chat_template is None
        batch = processor(text=[oracle._render(asked)], return_tensors="pt", add_special_tokens=start, **given)
        with torch.no_grad():
            logits = model(**batch).logits[0].double().numpy()  # of every token of the prompt
        odds = np.exp(logits[-1] - logits[-1].max())
        return odds[digits] / odds.sum(), batch["input_ids"].shape[1]

    def neutral(name: str, shade: int, like: Concept) -> Concept:
        return Concept(name, "", (mllm._picture(shade),) * len(like.images))

    logs = [
        np.log(answer(Pair(neutral(a, x, pair.first), neutral(b, y, pair.second), pair.phrasing))[0])
        for (a, b), (x, y) in zip(prompts.NEUTRAL, mllm.SHADES, strict=True)
    ]
    prior = np.exp(np.mean(logs, 0)) / np.exp(np.mean(logs, 0)).sum()
    found, length = answer(pair)
    corrected = found / (weight * prior + (1 - weight) / 10)
    expected = 10 / 9 * (corrected / corrected.sum() * np.arange(10)).sum()
    oracle.settings.prior = weight
    try:
        (rating,) = oracle.rate([pair])
    finally:
        oracle.settings.prior = 0.5
    assert rating.value == pytest.approx(expected, **CLOSE)
    assert (rating.prompt_tokens, rating.answer_tokens) == (length, 1)


@pytest.mark.parametrize("name", REUSING)
@pytest.mark.parametrize("pairs", [PICTURED, TEXT], ids=["pictures", "text"])
def test_reusing_the_first_concept_gives_the_same_ratings(
    folders: dict[str, Path], name: str, pairs: list[Pair]
) -> None:
    plain, reusing = load(folders[name], reuse_prefix=False), load(folders[name])
    assert (plain.reuses, reusing.reuses) == (False, True)
    expected, found = plain.rate(pairs), reusing.rate(pairs)
    assert [r.value for r in found] == pytest.approx([r.value for r in expected], **CLOSE)
    assert [r.prompt_tokens for r in found] == [r.prompt_tokens for r in expected]
    shared = pairs[:3]  # one first concept
    whole, less = tokens_read(plain, shared), tokens_read(reusing, shared)
    assert whole >= sum(r.prompt_tokens for r in expected[:3])  # padding included
    assert less < 0.5 * whole


@pytest.mark.parametrize("images", [0, 2])
def test_a_prompt_that_does_not_begin_with_the_first_concept_is_not_reused(
    folders: dict[str, Path], images: int
) -> None:
    assert not load(folders["llava, pictures first"], images=images).reuses


def test_few_prefixes_are_kept(folders: dict[str, Path]) -> None:
    oracle = load(folders["llava"])
    pairs = [Pair(concept(f"class {i}", i), concept(f"other {j}", j)) for i in range(6) for j in range(2)]
    together = values(oracle, pairs)
    assert len(oracle.prefixes) == mllm.CACHED_PREFIXES
    assert values(oracle, pairs) == pytest.approx(together, **CLOSE)


def test_each_question_takes_one_forward_pass(folders: dict[str, Path]) -> None:
    oracle = load(folders["idefics3"], reuse_prefix=False)
    oracle.rate(PICTURED + TEXT)  # the neutral pairs are asked once
    rows: list[int] = []
    hook = oracle.model.register_forward_pre_hook(
        lambda _, __, given: rows.append(len(given["input_ids"])), with_kwargs=True
    )
    oracle.rate(PICTURED + TEXT)
    hook.remove()
    assert rows == [len(PICTURED), len(TEXT)]


def tokens_read(oracle: MllmOracle, pairs: list[Pair]) -> int:
    """Tokens that the model is given for ``pairs``, without those of the neutral pairs."""
    oracle.rate(pairs)
    read: list[int] = []
    hook = oracle.model.register_forward_pre_hook(
        lambda _, __, given: read.append(given["input_ids"].numel()), with_kwargs=True
    )
    oracle.rate(pairs)
    hook.remove()
    return sum(read)


def test_too_little_probability_on_digits_is_no_answer(folders: dict[str, Path]) -> None:
    assert all(np.isfinite(values(load(folders["llava"], min_mass=0.0), PICTURED)))
    refused = load(folders["llava"], min_mass=0.9).rate(PICTURED)
    assert all(np.isnan(rating.value) for rating in refused)
    assert all(rating.prompt_tokens > 0 for rating in refused)  # it cost as much


@pytest.mark.parametrize("name", ["llava", "idefics3"])
def test_bfloat16_is_close_to_float32(folders: dict[str, Path], name: str) -> None:
    pairs = PICTURED + TEXT
    half, full = load(folders[name], dtype="bfloat16"), load(folders[name], dtype="float32")
    assert half.model.dtype == torch.bfloat16
    expected = values(full, pairs)
    assert values(half, pairs) == pytest.approx(expected, abs=0.2)
    assert all(isinstance(value, float) for value in expected)


def test_the_form_of_the_digit_that_the_model_prefers_is_scored(tmp_path: Path) -> None:
    words = tiny_vlm.tokenizer(spaced_digits=True)
    folder = tiny_vlm.llava(tmp_path, None, spread=SPREAD, words=words)
    spaced = words.convert_tokens_to_ids([f"Ġ{digit}" for digit in range(10)])
    bare = words.convert_tokens_to_ids([str(digit) for digit in range(10)])
    assert load(folder).digits in (bare, spaced)
    for chosen in (bare, spaced):
        oracle = load(folder)
        tiny_vlm.favour(oracle, chosen, 20, [mllm._neutral(0, 2, 2)])
        oracle.model.save_pretrained(tmp_path / "favoured")
        oracle.processor.save_pretrained(tmp_path / "favoured")
        oracle = load(tmp_path / "favoured")
        assert (oracle.digits, oracle.lead) == (chosen, "")
