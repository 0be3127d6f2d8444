"""MeGU moves weights back towards the original ones as far as the forgotten class stays forgotten."""

from __future__ import annotations

from pathlib import Path

import method_workers as workers
import pytest
import torch
from torch import Tensor

from megu_dist.config.registry import lookup
from megu_dist.methods import interpolate

State = dict[str, Tensor]
FIT = ["train.epochs=4", "method.lambda_forget=1.0", "method.lower_bias=false"]


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
    state, ctx = workers.run("megu", folder, words=[*FIT, f"method.residual={residual}"])
    assert state is not None
    share = ctx.told["interpolated"]
    assert 0 < share < 1
    for name, value in between(workers.original(folder), fitted, share).items():
        torch.testing.assert_close(state[name], value)
    assert remembered(state) <= residual
    assert remembered(between(workers.original(folder), fitted, share - 1 / 32)) > residual


def test_weights_that_have_not_forgotten_enough_stay_where_they_are(folder: Path, fitted: State) -> None:
    assert remembered(fitted) > 1e-6
    state, ctx = workers.run("megu", folder, words=[*FIT, "method.residual=1e-6"])
    assert state is not None
    assert ctx.told["interpolated"] == 1
    assert all(torch.equal(state[name], value) for name, value in fitted.items())


@pytest.mark.parametrize(("words", "moved"), [([], False), (["perturb.probe_images=100"], True)])
def test_by_default_only_with_a_probe(words: list[str], moved: bool, folder: Path) -> None:
    _, ctx = workers.run("megu", folder, words=[*FIT, *words])
    assert ("interpolated" in ctx.told) is moved


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
