"""Ratings from the probabilities of digits, and which tokens those are."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_vlm
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from megu_dist.errors import UserError
from megu_dist.oracle.scoring import answer_forms, expectation


def logs(*probabilities: float) -> torch.Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


FLAT = logs(*[0.1] * 10)


def test_a_certain_digit_is_a_ninth_of_ten_per_step() -> None:
    certain = torch.full((10, 10), -60.0).fill_diagonal_(0.0)
    np.testing.assert_allclose(expectation(certain, FLAT, 0.5), np.arange(10) * 10 / 9, atol=1e-6)
    assert float(expectation(FLAT[None], FLAT, 0.5)[0]) == pytest.approx(5)


def test_probability_that_is_not_on_digits_does_not_count() -> None:
    found = logs(0.3, 0.05, 0.05, 0.1, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05)[None]
    prior = logs(0.1, 0.1, 0.3, 0.1, 0.1, 0.05, 0.05, 0.1, 0.05, 0.05)
    expected = expectation(found, prior, 0.7)
    torch.testing.assert_close(expectation(found - 5, prior - 11, 0.7), expected)


def test_what_is_said_to_a_neutral_pair_too_is_divided_out() -> None:
    biased = logs(*[0.01] * 5, 0.91, *[0.01] * 4)  # whatever is asked, 5
    high, low = biased.clone(), biased.clone()
    high[9] += 3
    low[0] += 3
    for weight, least in ((0.0, 1.0), (0.5, 3.0), (1.0, 6.0)):
        up, down = expectation(torch.stack([high, low]), biased, weight).tolist()
        assert up - down > least
        assert (up - down < 2 * least) or weight == 1
    assert float(expectation(biased[None], biased, 1.0)[0]) == pytest.approx(5)


def test_a_prior_that_is_sure_of_one_digit_does_not_forbid_it() -> None:
    sure = torch.full((10,), -40.0, dtype=torch.float64)
    sure[9] = 0
    assert float(expectation(sure[None], sure, 0.5)[0]) > 9
    assert float(expectation(sure[None], sure, 1.0)[0]) == pytest.approx(5)


def test_digits_alone_and_after_a_space() -> None:
    words = tiny_vlm.tokenizer(spaced_digits=True)
    bare, spaced = (words.convert_tokens_to_ids([f"{space}{d}" for d in range(10)]) for space in ("", "Ġ"))
    assert answer_forms(words, "Answer:") == [("", bare), ("", spaced)]


def test_digits_after_a_space_that_is_a_token_of_its_own() -> None:
    words = tiny_vlm.tokenizer()
    digits = words.convert_tokens_to_ids([str(d) for d in range(10)])
    assert answer_forms(words, "Answer:") == [("", digits), (" ", digits)]


def test_digits_that_would_merge_with_the_prompt_are_not_taken() -> None:
    words = tiny_vlm.tokenizer(spaced_digits=True)
    spaced = words.convert_tokens_to_ids([f"Ġ{d}" for d in range(10)])
    assert answer_forms(words, "Answer: ") == [("", spaced)]  # "Answer: 7" would take the prompt's own space


def test_a_tokenizer_without_one_token_digits_is_refused() -> None:
    core = Tokenizer(models.WordLevel({"<unk>": 0, "Answer": 1, ":": 2}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    words = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    with pytest.raises(UserError, match="no one-token digits"):
        answer_forms(words, "Answer:")
