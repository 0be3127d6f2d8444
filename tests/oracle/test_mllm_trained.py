"""Multimodal LLMs trained here to follow a rule: what constrained scoring finds is what the model answers to a pair.

One family learns a rule about pictures (alike: both dark or both bright), the other one about descriptions (alike: the
same). Names are drawn at random, so that nothing but what the rule is about tells the answer.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_vlm
import torch

from megu_dist.oracle import prompts
from megu_dist.oracle.backends.mllm import MllmOracle, MllmSettings, _pictures
from megu_dist.oracle.base import Concept, Pair

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES, UNSEEN = ("rex", "bob", "tim", "kit", "max", "joy", "ida", "una"), ("leo", "eve", "sam", "zoe")
KINDS = ("animal", "vehicle")
DARK, BRIGHT = (0, 80), (176, 256)
HIGH, LOW = (7, 8, 9), (0, 1, 2)  # digits of alike and of unlike pairs
STEPS, BATCH, RATE = 500, 32, 0.005  # steps at most
LEARNT = 1.2  # mean loss; log 3 = 1.1 is the least, as the digits of HIGH and of LOW are drawn


def pictured(count: int, seed: int) -> tuple[list[Pair], np.ndarray]:
    """Pairs with one picture each; names are no help."""
    rng = np.random.default_rng(seed)
    alike = np.arange(count) % 2 == 0
    pairs = []
    for place in range(count):
        first = rng.integers(2)
        shades = [int(rng.integers(*(DARK, BRIGHT)[side])) for side in (first, first if alike[place] else 1 - first)]
        a, b = (Concept(str(name), "", (tiny_vlm.picture(shade, int(rng.integers(1 << 30))),))
                for name, shade in zip(rng.choice(NAMES, 2), shades, strict=True))  # fmt: skip
        pairs.append(Pair(a, b))
    return pairs, alike


def described(count: int, names: tuple[str, ...], seed: int) -> tuple[list[Pair], np.ndarray]:
    """Pairs without pictures; alike where both descriptions say the same."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(2, size=(count, 2))
    pairs = [Pair(*(Concept(str(rng.choice(names)), KINDS[kind]) for kind in row)) for row in kinds]
    return pairs, kinds[:, 0] == kinds[:, 1]


def texts() -> list[str]:
    """What the tokenizer makes words of, so that prompts are short."""
    pairs = [
        Pair(Concept(a, KINDS[0]), Concept(a, KINDS[1]), wording) for a in (*NAMES, *UNSEEN) for wording in range(3)
    ]
    rest = ", picture 1, picture 2\nAnswer:<turn>user\n<end>\n<turn>assistant\n"
    return [prompts.opening(pair, prompts.ANSWER_DIGIT) + prompts.closing(pair) + rest for pair in pairs]


def train(folder: Path, pairs: list[Pair], alike: np.ndarray, out: Path) -> Path:
    """Fits the model in ``folder`` to answer with a digit of HIGH or LOW, on the prompts of the oracle itself."""
    oracle = MllmOracle(MllmSettings(name="mllm", path=str(folder), min_mass=0))
    images = [[*_pictures(pair.first), *_pictures(pair.second)] for pair in pairs]
    batch = oracle._tokenize([oracle._render(pair) for pair in pairs], images, True)
    last = batch["attention_mask"].sum(1) - 1
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    model = oracle.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), RATE)
    warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 20))
    losses: list[float] = []
    pixels = batch["pixel_values"].unflatten(0, (len(pairs), -1)) if "pixel_values" in batch else None
    while len(losses) < STEPS and (len(losses) < 20 or np.mean(losses[-20:]) > LEARNT):
        rows = torch.from_numpy(rng.choice(len(pairs), BATCH))
        given = {"pixel_values": pixels[rows].flatten(0, 1)} if pixels is not None else {}
        ends, place = torch.unique(last[rows], return_inverse=True)
        given |= {key: batch[key][rows] for key in ("input_ids", "attention_mask")}
        logits = model(**given, logits_to_keep=ends).logits[torch.arange(BATCH), place]
        digits = [int(rng.choice(HIGH if alike[row] else LOW)) for row in rows]
        answers = torch.tensor([oracle.digits[digit] for digit in digits])
        loss = torch.nn.functional.cross_entropy(logits, answers)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        warm_up.step()
        losses.append(loss.item())
    model.save_pretrained(out)
    oracle.processor.save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llava")
    tiny_vlm.llava(folder, hidden=32, spread=0.1, words=tiny_vlm.tokenizer(texts=texts()))
    return train(folder, *pictured(512, 1), folder / "trained")


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_vlm.idefics3(tmp_path_factory.mktemp("idefics3"), hidden=32, spread=0.1, texts=texts())
    return train(folder, *described(512, NAMES, 1), folder / "trained")


def load(folder: Path, prior: float = 0.5) -> MllmOracle:
    return MllmOracle(MllmSettings(name="mllm", path=str(folder), prior=prior))


def separation(oracle: MllmOracle, pairs: list[Pair], alike: np.ndarray) -> tuple[float, float]:
    """Difference of the mean ratings, and share of (alike, unlike) pairs of questions in the right order."""
    values = np.array([rating.value for rating in oracle.rate(pairs)])
    assert np.isfinite(values).all()
    order = values[alike][:, None] > values[~alike][None]
    return float(values[alike].mean() - values[~alike].mean()), float(order.mean())


@pytest.mark.parametrize("prior", [0.0, 0.5, 1.0])
def test_ratings_follow_the_pictures(seeing: Path, prior: float) -> None:
    margin, order = separation(load(seeing, prior), *pictured(40, 2))
    assert margin > 5
    assert order == 1


def test_other_pictures_under_the_same_names_give_other_ratings(seeing: Path) -> None:
    pairs, alike = pictured(40, 2)
    swapped = [pair._replace(second=pairs[(place + 1) % 40].second) for place, pair in enumerate(pairs)]
    bright = np.array([[np.asarray(_pictures(c)[0]).mean() > 128 for c in pair[:2]] for pair in swapped])
    now_alike = bright[:, 0] == bright[:, 1]
    assert (now_alike != alike).any()
    margin, order = separation(load(seeing), swapped, now_alike)
    assert margin > 5
    assert order == 1


def test_ratings_follow_the_descriptions_of_unseen_names(reading: Path) -> None:
    pairs, alike = described(40, UNSEEN, 2)
    margin, order = separation(load(reading), pairs, alike)
    assert margin > 5
    assert order == 1


@pytest.mark.parametrize(("family", "digit"), [("seeing", 0), ("seeing", 9), ("reading", 9)])
def test_a_model_that_prefers_one_digit_is_read_all_the_same(
    request: pytest.FixtureRequest, family: str, digit: int
) -> None:
    folder = request.getfixturevalue(family)
    pairs, alike = pictured(40, 2) if family == "seeing" else described(40, UNSEEN, 2)
    margins = {}
    for prior in (0.0, 0.5):
        oracle = load(folder, prior)
        tiny_vlm.favour(oracle, [oracle.digits[digit]], 6.0, pairs)
        margins[prior], order = separation(oracle, pairs, alike)
        assert order == 1
    assert margins[0.0] < 5  # the preference draws all ratings to its digit
    assert margins[0.5] > 5.5  # and is divided out
