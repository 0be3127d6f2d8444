"""The probe: what it learns, where it reads, and that labels follow it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from megu_dist.config.schema import PerturbSettings
from megu_dist.data import stream
from megu_dist.data.base import Source
from megu_dist.data.perturbed import PerturbedStore
from megu_dist.data.plan import complement
from megu_dist.data.readers import ImageReader
from megu_dist.models.checkpoint import open_checkpoint
from megu_dist.oracle.transition import Transition
from megu_dist.perturb.actor import Perturber
from megu_dist.perturb.probe import DECAY, Lesson, Probe, features_at, fit
from megu_dist.perturb.stage import perturb

FORGOTTEN = 3


def labels_of(source: Source) -> np.ndarray:
    return np.concatenate([source.index(piece)["label"].to_numpy() for piece in source.pieces("train")])


def test_log_probs_in_closed_form() -> None:
    probe = Probe(
        np.array([1.0]), np.array([2.0]), np.array([[0.0], [1.0]]), np.array([0.0, np.log(3)]), np.array([0, 2])
    )
    found = np.exp(probe.log_probs(np.array([[1.0], [1 + 2 * np.log(2)]]), 3))
    np.testing.assert_allclose(found[:, [0, 2]], [[1 / 4, 3 / 4], [1 / 7, 6 / 7]])
    np.testing.assert_allclose(found[:, 1], [1 / 4, 1 / 7])  # unknown: as the unlikeliest


@pytest.mark.parametrize("classes", [2, 4])
def test_fit_is_the_minimum_that_it_says(classes: int) -> None:
    """The gradient of mean cross-entropy + DECAY · |W|² is zero there."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, classes, 400) * 2  # labels with gaps
    x = (rng.normal(size=(400, 5)) + np.eye(8, 5)[y]).astype(np.float32)
    probe = fit(x, y)
    assert probe.classes.tolist() == sorted(set(y.tolist()))
    z = torch.from_numpy((x - probe.centre) / probe.scale).double()
    weight, bias = (torch.from_numpy(p).double().requires_grad_() for p in (probe.weight, probe.bias))
    loss = nn.functional.cross_entropy(z @ weight.T + bias, torch.from_numpy(y // 2))
    # Of two classes, scikit-learn bounds the one score w = w₁ - w₀, whose square is twice |w₀|² + |w₁|².
    loss = loss + DECAY * (2 if classes == 2 else 1) * (weight**2).sum()
    loss.backward()
    assert weight.grad is not None
    assert bias.grad is not None
    assert weight.grad.abs().max() < 2e-3
    assert bias.grad.abs().max() < 2e-3


class Chain(nn.Module):
    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*[nn.Linear(2, 2) for _ in range(blocks)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("blocks", "depth", "read"), [(3, 2 / 3, 2), (8, 2 / 3, 6), (12, 2 / 3, 8), (4, 0.01, 1), (4, 1, 4)]
)
def test_depth(blocks: int, depth: float, read: int) -> None:
    model, x = Chain(blocks), torch.rand(3, 2)
    model.config = None
    with torch.no_grad(), features_at(model, depth) as features:
        model(x)
        found = features()
    torch.testing.assert_close(found, model.blocks[:read](x))
    assert not any(module._forward_hooks for module in model.modules())


def test_probe_knows_retained_classes_only(digits: Source, digits_model: Path) -> None:
    """The same with two actors as in this process; it tells the retained digits apart."""
    labels = labels_of(digits)
    rows = complement(len(labels), np.flatnonzero(labels == FORGOTTEN))[::3]
    checkpoint, settings = open_checkpoint(str(digits_model)), PerturbSettings(probe_images=1, batch_size=64)
    done: list[int] = []
    folder, lesson = str(digits_model), Lesson(digits, rows, checkpoint.preprocess, settings)
    probe = lesson.learn(folder, 2, done.append)
    assert done[-1] == len(rows)
    assert probe is not None
    assert probe.classes.tolist() == [c for c in range(10) if c != FORGOTTEN]
    with stream.in_this_process():
        again = lesson.learn(folder, 1)
        assert again is not None
        one = Lesson(digits, rows[labels[rows] == 1], checkpoint.preprocess, settings).learn(folder, 1)
    np.testing.assert_allclose(again.weight, probe.weight, atol=2e-3)
    assert one is None  # a single class has nothing to tell


def test_labels_follow_the_probe(digits: Source, digits_model: Path, tmp_path: Path) -> None:
    """Labels are those of the geometric mean of the model's and the probe's probabilities."""
    labels = labels_of(digits)
    rows, checkpoint = np.flatnonzero(labels == FORGOTTEN), open_checkpoint(str(digits_model))
    retained = complement(len(labels), rows)[::3]
    settings = PerturbSettings(noise="none", label_policy="argmax", probe_images=len(retained), precision="fp32")
    transition = Transition(np.full((1, 10), 0.1), (FORGOTTEN,))
    made = {}
    with stream.in_this_process():
        for name, kept in (("without", None), ("with", retained)):
            folder = tmp_path / name
            ignore = [].append
            perturb(digits, rows, checkpoint, transition, [FORGOTTEN], settings, 0, 1, folder, ignore, retained=kept)
            store = PerturbedStore(folder)
            assert store.rows.tolist() == rows.tolist()
            made[name] = store.gather(np.arange(len(store)), 0)
        probe = Lesson(digits, retained, checkpoint.preprocess, settings).learn(str(digits_model), 1)
    assert probe is not None
    model = checkpoint.load()
    pixels = torch.from_numpy(np.array(made["with"]["image"])).float() / 255
    with torch.no_grad(), features_at(model, settings.probe_depth) as features:
        own = model(pixel_values=checkpoint.preprocess.normalise(pixels)).logits.log_softmax(1).double().numpy()
        mixed = own + probe.log_probs(features().numpy(), 10)
    for name, score in (("without", own), ("with", mixed)):
        score = score.copy()
        score[:, FORGOTTEN] = -np.inf
        assert (made[name]["perturbing_label"] == score.argmax(1)).mean() > 0.99
    assert (made["with"]["perturbing_label"] != made["without"]["perturbing_label"]).any()
    assert (
        pq.read_schema(PerturbedStore(tmp_path / "with").files[0]).names
        == pq.read_schema(PerturbedStore(tmp_path / "without").files[0]).names
    )


def test_single_images_keep_their_label_as_often_as_unseen_ones(
    digits: Source, digits_model: Path, tmp_path: Path
) -> None:
    """Most of them, for digits are easy; without ``keep``, none."""
    rows, checkpoint = np.arange(0, len(labels_of(digits)), 5), open_checkpoint(str(digits_model))
    retained = complement(len(labels_of(digits)), rows)[::3]
    settings = PerturbSettings(noise="none", probe_images=len(retained), draws=4)
    transition = Transition(np.full((10, 10), 0.1), tuple(range(10)))
    share = {}
    with stream.in_this_process():
        for keep in (False, True):
            folder = tmp_path / str(keep)
            perturb(digits, rows, checkpoint, transition, [], settings, 0, 1, folder, [].append, False, retained, keep)
            store = PerturbedStore(folder)
            draws = [store.gather(np.arange(len(store)), draw) for draw in range(4)]
            share[keep] = np.mean([draw["perturbing_label"] == draw["label"] for draw in draws])
    assert share[False] == 0
    assert 0.7 < share[True] < 1


@pytest.mark.parametrize(("fine", "kappa", "expected"), [(True, 1.0, 0.28), (True, 2.0, 0.13), (False, 2.0, None)])
def test_a_subclass_keeps_its_coarse_label_as_often_as_the_probe_says(
    fine: bool, kappa: float, expected: float | None, digits: Source, digits_model: Path, tmp_path: Path
) -> None:
    """Sharpened by κ, and whatever the model thinks, which was taught it; single images ask both."""
    checkpoint = open_checkpoint(str(digits_model))
    rows = np.flatnonzero(labels_of(digits) == FORGOTTEN)
    settings = PerturbSettings(noise="none", probe_images=100, draws=8, kappa=kappa)
    with stream.in_this_process():
        learnt = Lesson(digits, np.arange(200), checkpoint.preprocess, settings).learn(str(digits_model), 1)
    assert learnt is not None
    bias = np.log(np.where(np.arange(10) == FORGOTTEN, 0.28, 0.08))  # whatever the image
    probe = Probe(learnt.centre, learnt.scale, np.zeros_like(learnt.weight), bias, np.arange(10))
    block = ImageReader(digits, "train", checkpoint.preprocess, keep_id=True)({"row": rows})
    block["fine"] = block["label"]
    transition = Transition(np.full((1, 10), 0.1), (FORGOTTEN,))
    Perturber(str(digits_model), transition, [], settings, 0, str(tmp_path), 0, fine, True, probe)(block)
    store = PerturbedStore(tmp_path)
    drawn = np.stack([store.gather(np.arange(len(store)), draw)["perturbing_label"] for draw in range(8)])
    share = float((drawn == FORGOTTEN).mean())
    assert share == pytest.approx(expected, abs=0.04) if expected else share > 0.5
