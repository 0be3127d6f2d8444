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


def answer_forms(tokenizer: Any, prompt: str) -> list[tuple[str, list[int]]]:
    """The ways in which one token can answer with a digit: (what the prompt must end with, the ten token ids).

    After "Answer:", some models go on with "7", some with " 7", some with a space that is a token of its own and then
    "7". Raises :class:`UserError` where digits are not one token each.
    """

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    forms = []
    for lead, space in (("", ""), ("", " "), (" ", "")):
        before = ids(prompt + lead)
        if lead and before[:-1] != ids(prompt):
            continue
        answers = [ids(f"{prompt}{lead}{space}{digit}") for digit in range(10)]
        found = [after[-1] for after in answers if after[:-1] == before]
        if len(set(found)) == 10:
            forms.append((lead, found))
    if not forms:
        raise UserError(
            "oracle.path: this model's tokenizer has no one-token digits, which constrained scoring needs; use "
            "another model"
        )
    return forms
