"""Every method: finishes, moves the model, forgets, respects its seed, and does not depend on the number of workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import method_workers as workers
import pytest
import torch
from torch import Tensor

from megu_dist.config.registry import components, lookup
from megu_dist.engine.batch import Batch, Part

# Settings under which each method forgets class 0 of the small problem; those that are not listed do so by default.
FORGETTING = {
    "finetune": ["train.epochs=20", "train.lr=0.1"],
    "l1_sparse": ["train.epochs=20", "train.lr=0.1", "method.gamma=0.001"],
    "megu": ["train.epochs=4", "method.lambda_forget=1.0"],
    "neggrad": ["train.epochs=20", "train.lr=0.05", "method.gamma=0.5"],
    "random_label": ["train.epochs=4"],
    "salun": ["train.epochs=6"],
    "bad_teacher": ["train.epochs=12", "train.lr=0.1", "method.lambda_forget=2.0"],
    "scrub": ["train.epochs=12", "method.max_epochs=3"],
    "boundary_shrink": ["train.epochs=4"],
    "unsir": ["train.epochs=6", "train.lr=0.05"],
    "ssd": [],
    "lfssd": [],
    "negtv": ["train.epochs=10", "train.lr=0.1", "method.strength=10"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("methods")


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Each method's weights in one process."""
    return {method: workers.run(method, folder)[0] for method in workers.METHODS}  # type: ignore[misc]


@pytest.fixture(scope="module")
def two(folder: Path) -> dict[str, Any]:
    """Each method's weights on two workers."""
    return workers.on_two_workers(folder)


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[k].float() - b[k].float()).abs().max()) for k in a)


def test_the_original_knows_all_classes(folder: Path) -> None:
    assert workers.accuracy(workers.original(folder), [0, 1, 2, 3]) > 0.9


@pytest.mark.parametrize("method", workers.METHODS)
def test_it_moves_the_model_and_nothing_becomes_infinite(
    method: str, alone: dict[str, dict[str, Tensor]], folder: Path
) -> None:
    assert distance(alone[method], workers.original(folder)) > 1e-4
    assert all(torch.isfinite(value).all() for value in alone[method].values())


@pytest.mark.parametrize("method", workers.METHODS)
def test_the_number_of_workers_changes_nothing(
    method: str, alone: dict[str, dict[str, Tensor]], two: dict[str, Any]
) -> None:
    assert isinstance(two[method], dict), two[method]
    assert distance(alone[method], two[method]) < 2e-4


@pytest.mark.parametrize("method", workers.METHODS)
def test_it_forgets(method: str, folder: Path) -> None:
    state, _ = workers.run(method, folder, words=FORGETTING[method])
    assert state is not None
    assert workers.accuracy(state, [0]) < 0.35
    if method not in ("ssd", "lfssd", "negtv"):  # these see no retained image that could repair the rest
        assert workers.accuracy(state, [1, 2, 3]) > 0.6


@pytest.mark.parametrize("distill", [0.0, 0.25, 1.0])
def test_megus_retained_loss_follows_labels_and_the_original(
    distill: float, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx = workers.context("megu", folder, 0, 1, [f"method.distill={distill}"])
    fits: list[Any] = []
    monkeypatch.setattr(ctx, "fit", lambda *given: fits.append(given))
    model = workers.network()
    model.load_state_dict(workers.original(folder))
    lookup("method", "megu").target(ctx.settings.method).unlearn(ctx, model, *workers.data())
    part = Part(60, workers.fresh([1, 2, 3]))
    logits = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    forget_sum, retain_sum, _ = fits[0][3](logits[:0], logits, Batch(Part(0), part))
    assert forget_sum == 0
    now = logits.log_softmax(1)
    labels = -now[torch.arange(60), part.label].sum()
    known = workers.log_probs(workers.original(folder), part.image)[:, 1:].log_softmax(1)  # class 0 is forgotten
    original = (known.exp() * (known - now[:, 1:])).sum()
    torch.testing.assert_close(retain_sum, (1 - distill) * labels + distill * original, rtol=1e-4, atol=1e-4)


def test_megu_forgets_by_distillation_alone(folder: Path) -> None:
    state, _ = workers.run("megu", folder, words=[*FORGETTING["megu"], "method.distill=1"])
    assert state is not None
    assert workers.accuracy(state, [0]) < 0.35
    assert workers.accuracy(state, [1, 2, 3]) > 0.6


@pytest.mark.parametrize("method", ["random_label", "unsir", "bad_teacher"])
def test_the_seed_decides(method: str, alone: dict[str, dict[str, Tensor]], folder: Path) -> None:
    again, _ = workers.run(method, folder)
    other, _ = workers.run(method, folder, seed=1)
    assert again is not None
    assert other is not None
    assert distance(alone[method], again) == 0
    assert distance(alone[method], other) > 1e-4


@pytest.mark.parametrize("name", sorted(components("method")))
def test_search_spaces_name_settings_that_exist(name: str) -> None:
    from megu_dist.config.compose import known_keys

    kinds = {"log": 2, "uniform": 2, "int": 2}
    for key, (kind, *values) in lookup("method", name).target.search.items():
        assert key in known_keys()
        if kind == "choice":
            assert len(values) >= 2
        else:
            assert len(values) == kinds[kind]
            assert values[0] < values[1]
    assert (name == "retrain") == (not lookup("method", name).target.search)
