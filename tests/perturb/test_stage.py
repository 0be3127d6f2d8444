"""The perturb stage on Ray Data, with a trained classifier of the digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from megu_dist.config.schema import PerturbSettings
from megu_dist.data import stream
from megu_dist.data.base import Source
from megu_dist.data.perturbed import PerturbedStore
from megu_dist.models.checkpoint import open_checkpoint
from megu_dist.oracle.transition import Transition
from megu_dist.perturb.noise import mix
from megu_dist.perturb.stage import perturb

FORGOTTEN = [3, 8]
EPSILON = 16 / 255


@pytest.fixture(scope="module")
def rows(digits: Source) -> np.ndarray:
    labels = np.concatenate([digits.index(piece)["label"].to_numpy() for piece in digits.pieces("train")])
    return np.flatnonzero(np.isin(labels, FORGOTTEN))


@pytest.fixture(scope="module")
def stores(
    digits: Source, digits_model: Path, rows: np.ndarray, tmp_path_factory: pytest.TempPathFactory
) -> list[PerturbedStore]:
    """The same stage with one and with two actors, and without."""
    transition = Transition(np.full((2, 10), 0.1), (3, 8))
    made = []
    for actors in (1, 2, 0):
        out = tmp_path_factory.mktemp(f"perturbed-{actors}")
        done: list[int] = []
        settings = PerturbSettings(draws=2, epsilon=EPSILON, batch_size=64, noise="both")
        checkpoint = open_checkpoint(str(digits_model))
        info = perturb(digits, rows, checkpoint, transition, FORGOTTEN, settings, 0, actors, out, done.append)
        assert info == {"images": len(rows)}
        assert done[-1] == len(rows)
        made.append(PerturbedStore(out))
    return made


def test_every_forget_image_is_there_once(stores: list[PerturbedStore], rows: np.ndarray, digits: Source) -> None:
    store = stores[0]
    assert store.rows.tolist() == rows.tolist()
    ids = [i for file in store.files for i in pq.read_table(file, columns=["id"])["id"].to_pylist()]
    assert sorted(ids) == sorted(digits.gather("train", rows)["id"].to_pylist())
    assert len(store.files) > 1


def test_labels_are_never_forgotten_ones(stores: list[PerturbedStore]) -> None:
    draws = [stores[0].gather(np.arange(len(stores[0])), draw) for draw in range(2)]
    assert not np.isin([d["perturbing_label"] for d in draws], FORGOTTEN).any()
    assert set(draws[0]["label"].tolist()) == set(FORGOTTEN)
    assert (draws[0]["perturbing_label"] != draws[1]["perturbing_label"]).any()
    assert len(set(draws[0]["perturbing_label"].tolist())) > 2


def test_noise_does_what_it_is_for(stores: list[PerturbedStore], digits_model: Path) -> None:
    """N⁺ raises the perturbing label's probability, N⁻ lowers the label's."""
    store, checkpoint = stores[0], open_checkpoint(str(digits_model))
    model = checkpoint.load()
    out = {k: torch.from_numpy(np.array(v)) for k, v in store.gather(np.arange(len(store)), 1).items()}
    pixels = out["image"].float() / 255

    def probability(alpha: float, beta: float, of: str) -> torch.Tensor:
        moved = mix(pixels, out["noise_pos"], out["noise_neg"], store.scale, alpha, beta)
        assert (moved - pixels).abs().max() <= EPSILON + 1e-6
        with torch.no_grad():
            probs = model(pixel_values=checkpoint.preprocess.normalise(moved)).logits.softmax(1)
        return probs.gather(1, out[of][:, None])[:, 0]

    raised = probability(1, 0, "perturbing_label") > probability(0, 0, "perturbing_label")
    lowered = probability(0, 1, "label") < probability(0, 0, "label")
    assert raised.float().mean() > 0.97
    assert lowered.float().mean() > 0.97


@pytest.mark.parametrize("noise", ["none", "positive", "negative"])
def test_only_the_noise_asked_for_is_made(
    noise: str, stores: list[PerturbedStore], digits: Source, digits_model: Path, rows: np.ndarray, tmp_path: Path
) -> None:
    """Labels and what noise is made are those of the run with both."""
    settings = PerturbSettings(draws=2, epsilon=EPSILON, batch_size=64, noise=noise)
    checkpoint, transition = open_checkpoint(str(digits_model)), Transition(np.full((2, 10), 0.1), (3, 8))
    with stream.in_this_process():
        perturb(digits, rows, checkpoint, transition, FORGOTTEN, settings, 0, 1, tmp_path / "p", lambda _: None)
    store = PerturbedStore(tmp_path / "p")
    made = {"none": (), "positive": ("noise_pos",), "negative": ("noise_neg",)}[noise]
    assert store.noise == made
    for draw in range(2):
        one, both = (found.gather(np.arange(len(found)), draw) for found in (store, stores[0]))
        assert set(both) - set(one) == {"noise_pos", "noise_neg"} - set(made)
        assert np.array_equal(one["perturbing_label"], both["perturbing_label"])
        for name in made:
            assert (one[name] != both[name]).mean() < 0.001


def test_the_number_of_actors_does_not_matter(stores: list[PerturbedStore]) -> None:
    for draw in range(2):
        one, *others = (store.gather(np.arange(len(store)), draw) for store in stores)
        for other in others:
            for name in ("row", "label", "image", "perturbing_label"):
                assert np.array_equal(one[name], other[name])
            for name in ("noise_pos", "noise_neg"):
                assert (one[name] != other[name]).mean() < 0.001
