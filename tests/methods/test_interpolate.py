"""MeGU moves weights back as far as the forgotten class stays forgotten, and has its bias take what is left of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import method_workers as workers
import pytest
import torch
from torch import Tensor

from megu_dist.config.registry import lookup
from megu_dist.engine.batch import Part
from megu_dist.methods import interpolate
from megu_dist.models import layers
from megu_dist.models.preprocess import Preprocess

State = dict[str, Tensor]
FIT = ["train.epochs=4", "method.lambda_forget=1.0"]
MOVED = [*FIT, "method.lower_bias=false"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("interpolate")


@pytest.fixture(scope="module")
def fitted(folder: Path) -> State:
    """The weights at the end of the fine-tuning."""
    state, ctx = workers.run("megu", folder, words=[*FIT, "method.residual=0"])
    assert state is not None
    assert "interpolated" not in ctx.told
    return state


def remembered(state: State) -> float:
    """Mean probability of the forgotten class on the forget images."""
    forget, _ = workers.data()
    images = forget.read(forget.rows(0))["image"]
    return float(workers.log_probs(state, images).exp()[:, 0].mean())


def between(start: State, end: State, share: float) -> State:
    return {
        k: v + share * (end[k] - v) if v.is_floating_point() else end[k]  # as steps of a count cannot be shared
        for k, v in start.items()
    }


@pytest.mark.parametrize("residual", [0.2, 0.5])
def test_the_nearest_weights_that_have_forgotten(residual: float, folder: Path, fitted: State) -> None:
    assert remembered(fitted) < residual < remembered(workers.original(folder))
    state, ctx = workers.run("megu", folder, words=[*MOVED, f"method.residual={residual}"])
    assert state is not None
    assert "bias_lowered" not in ctx.told
    share = ctx.told["interpolated"]
    assert 0 < share < 1
    for name, value in between(workers.original(folder), fitted, share).items():
        torch.testing.assert_close(state[name], value)
    assert remembered(state) <= residual
    assert remembered(between(workers.original(folder), fitted, share - 1 / 32)) > residual


def test_a_bias_takes_what_is_left_and_no_other_weight_changes(folder: Path) -> None:
    moved, _ = workers.run("megu", folder, words=[*MOVED, "method.residual=0.2"])
    state, ctx = workers.run("megu", folder, words=[*FIT, "method.residual=0.2"])
    assert state is not None
    assert moved is not None
    bias = interpolate.bias_name(workers.network())
    assert [name for name, value in moved.items() if not torch.equal(value, state[name])] == [bias]
    assert torch.equal(moved[bias][1:], state[bias][1:])
    assert [float(moved[bias][0] - state[bias][0])] == pytest.approx(ctx.told["bias_lowered"], abs=1e-3)
    forget, _ = workers.data()
    values = workers.log_probs(state, forget.read(forget.rows(0))["image"])
    assert float(values[:, 0].mean()) == pytest.approx(float(values[:, 1:].amin(1).mean()), abs=1e-4)


def test_several_classes_each_have_their_own_bias(folder: Path) -> None:
    """Closed form: each class's mean logit on its own images comes down to that of the least likely class left."""
    images = torch.eye(4)[[0, 0, 1, 2]].reshape(4, 1, 2, 2)
    part = Part(4, {"image": images * 255, "label": torch.tensor([0, 0, 1, 2])})
    ctx = workers.context("megu", folder, 0, 1, FIT)
    ctx.forget_classes, ctx.already_classes = (0, 1, 2), ()

    class Table(torch.nn.Module):
        def forward(self, pixel_values: Tensor) -> SimpleNamespace:
            rows = torch.tensor([[5.0, 0, 0, 1, 2], [0, 7, 0, 3, 4], [0, 0, -9, 0, 1], [0.0] * 5])
            return SimpleNamespace(logits=pixel_values.flatten(1) @ rows)

    ctx.preprocess = Preprocess(2, 2, 1, (0.0,), (1.0,))
    assert interpolate._surplus(ctx, Table(), [part]).tolist() == [4, 4, 0]
    ctx.already_classes = (3,)  # forgotten by an earlier request: no measure of what is unlikely
    assert interpolate._surplus(ctx, Table(), [part]).tolist() == [3, 3, 0]


def test_the_bias_of_the_last_layer_if_it_has_one() -> None:
    network = workers.network()
    head = layers.head(network)
    assert interpolate.bias_name(network) == "classifier.bias"
    head.bias = None
    assert interpolate.bias_name(network) is None


def test_weights_that_have_not_forgotten_enough_stay_where_they_are(folder: Path, fitted: State) -> None:
    assert remembered(fitted) > 1e-6
    state, ctx = workers.run("megu", folder, words=[*FIT, "method.residual=1e-6"])
    assert state is not None
    assert ctx.told["interpolated"] == 1
    assert "bias_lowered" not in ctx.told  # it would hide the class, not forget it
    assert all(torch.equal(state[name], value) for name, value in fitted.items())


@pytest.mark.parametrize(("words", "residual"), [([], 0.03), (["method.lower_bias=false"], 0.01)])
def test_by_default_as_far_as_what_is_left_allows(words: list[str], residual: float, folder: Path) -> None:
    _, ctx = workers.run("megu", folder, words=[*FIT, *words])
    _, asked = workers.run("megu", folder, words=[*FIT, *words, f"method.residual={residual}"])
    _, other = workers.run("megu", folder, words=[*FIT, *words, "method.residual=0.2"])
    assert ctx.told["interpolated"] == asked.told["interpolated"] != other.told["interpolated"]


def test_images_of_classes_that_stay_leave_the_weights_where_they_are(folder: Path) -> None:
    ctx = workers.context("megu", folder, 0, 1, [*FIT, "method.residual=0.5"])
    ctx.forget_classes = ()
    model = workers.network()
    model.load_state_dict(workers.original(folder))
    ctx.final_weights(lookup("method", "megu").target(ctx.settings.method).unlearn(ctx, model, *workers.data()))
    assert "interpolated" not in ctx.told


def test_no_more_images_are_read_than_are_looked_at(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpolate, "IMAGES", 8)
    forget, _ = workers.data()
    parts = interpolate._images(workers.context("megu", folder, 0, 1, FIT), forget)
    found = torch.cat([part.image for part in parts])
    assert torch.equal(found, forget.read(forget.rows(0)[:8])["image"])
