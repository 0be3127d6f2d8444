"""Constrained scoring: a rating is the expectation over one-token answers, corrected by what the model says to nothing.

Digits 0–9 are one token each, so that no answer is longer, and thus less likely, than another. The correction is
contextual calibration (Zhao et al. 2021): the log-probabilities of a pair without content are subtracted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from megu_dist.errors import UserError
from megu_dist.oracle.base import MAX_RATING

if TYPE_CHECKING:
    from torch import Tensor


def expectation(log_probs: Tensor, prior: Tensor, weight: float) -> Tensor:
    """(N, 10) log-probabilities of the digits and (10,) of the prior → (N,) ratings in [0, 10].

    ``weight`` in [0, 1]: what is divided out is ``weight`` · prior + (1 - weight) · uniform. Below 1, the correction is
    bounded: a model that is sure of one digit even for nothing would otherwise lose that digit everywhere. Adding a
    constant to either argument changes nothing.
    """
    import torch

    digits = torch.arange(10, dtype=torch.float64, device=log_probs.device)
    expected = weight * prior.double().softmax(-1) + (1 - weight) / 10
    answer = (log_probs.double() - expected.log()).softmax(-1)
    return (answer * digits).sum(-1) * (MAX_RATING / 9)


def digit_tokens(tokenizer: Any, prompt: str) -> list[int]:
    """The ten token ids that continue ``prompt`` with a digit. Raises :class:`UserError` where there are none."""
    before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    for space in ("", " "):
        ids = []
        for digit in range(10):
            after = tokenizer(f"{prompt}{space}{digit}", add_special_tokens=False)["input_ids"]
            if len(after) == len(before) + 1 and after[: len(before)] == before:
                ids.append(after[-1])
        if len(set(ids)) == 10:
            return ids
    raise UserError("this model's tokenizer has no one-token digits, so it cannot be rated by constrained scoring")
