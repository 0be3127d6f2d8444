"""Training only the head, the last blocks or low-rank updates, and layer-wise learning rates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gloo_workers
import numpy as np
import pytest
import torch
import trainable_workers
from torch import Tensor, nn

from megu_dist.config.compose import load
from megu_dist.config.schema import TrainSettings, keyed
from megu_dist.config.validate import check, check_method
from megu_dist.data import stream
from megu_dist.data.base import Source
from megu_dist.engine.base import make_optimizer, set_rate
from megu_dist.engine.inline import fit_here
from megu_dist.engine.memory import measure, memory
from megu_dist.engine.trainable import add_low_rank, freeze, merged
from megu_dist.engine.worker import TrainJob
from megu_dist.errors import UserError
from megu_dist.forecast import plan
from megu_dist.models.architectures.transformers import TransformersModel, TransformersSettings
from megu_dist.models.checkpoint import export, open_checkpoint
from megu_dist.pipeline import Pipeline
from megu_dist.progress import Reporter

VIT = {"num_hidden_layers": 3, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "patch_size": 4}
RESNET = {"depths": [1, 1], "hidden_sizes": [8, 16], "embedding_size": 8}


def build(name: str = "vit", labels: tuple[str, ...] = ("a", "b", "c")) -> nn.Module:
    torch.manual_seed(0)
    config = VIT if name == "vit" else RESNET
    settings = TransformersSettings(name="transformers", model_type=name, num_channels=1, image_size=8, config=config)
    return TransformersModel(settings).build(list(labels))


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_what_is_trained() -> None:
    assert trained(freeze(build(), TrainSettings())) == {name for name, _ in build().named_parameters()}
    assert trained(freeze(build(), TrainSettings(trainable="head"))) == {"classifier.weight", "classifier.bias"}
    two = trained(freeze(build(), TrainSettings(trainable="last_blocks", last_blocks=2)))
    assert two == {n for n, _ in build().named_parameters() if ".embeddings." not in n and ".layers.0." not in n}
    low = trained(add_low_rank(build(), TrainSettings(trainable="lora", lora_rank=2), 0))
    assert {name for name in low if ".lora_" not in name} == {"classifier.weight", "classifier.bias"}
    assert len(low) == 2 + 3 * 2 * 6  # blocks × (A, B) × (query, key, value, output, two of the MLP)


def test_more_blocks_than_there_are_and_models_without_any_are_refused() -> None:
    with pytest.raises(UserError, match=r"train\.last_blocks=4: ViT\w+ has 3 blocks; ask for at most 3"):
        freeze(build(), TrainSettings(trainable="last_blocks", last_blocks=4))
    flat = nn.Linear(4, 2)
    flat.config = type("Config", (), {"num_labels": 2})()  # type: ignore[assignment]
    for settings in (TrainSettings(trainable="lora"), TrainSettings(layer_decay=0.5)):
        with pytest.raises(UserError, match="no chain of blocks was found in Linear"):
            freeze(flat, settings)


def test_each_block_learns_at_its_share_of_the_next_ones_rate() -> None:
    """One plain gradient step: a weight moves by its share of what it moves at the full rate."""

    def step(decay: float) -> dict[str, Tensor]:
        model = build().train()
        optimizer = make_optimizer(model, TrainSettings(momentum=0.0, weight_decay=0.0, layer_decay=decay))
        set_rate(optimizer, 0.1)
        images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        model(pixel_values=images).logits.square().sum().backward()
        optimizer.step()
        start = build().state_dict()
        return {name: value - start[name] for name, value in model.state_dict().items()}

    full, half = step(1.0), step(0.5)
    shares = {"classifier.weight": 1.0, "vit.layernorm.bias": 1.0, "vit.layers.2.mlp.fc1.weight": 0.5,
              "vit.layers.0.mlp.fc2.bias": 0.125, "vit.embeddings.cls_token": 0.0625}  # fmt: skip
    for name, share in shares.items():
        assert full[name].abs().max() > 1e-6
        torch.testing.assert_close(half[name], share * full[name], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_merged_updates_do_what_the_updates_beside_the_weights_did(name: str, tmp_path: Path) -> None:
    """Linear layers and convolutions; what is exported loads as a plain model."""
    model = add_low_rank(build(name), TrainSettings(trainable="lora", lora_rank=2), 0).eval()
    images = torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(model(images).logits, build(name).eval()(images).logits)  # nothing learned yet
        for key, parameter in model.named_parameters():
            if ".lora_B." in key:
                parameter.normal_(std=0.3)
        expected = model(images).logits
        preprocess = gloo_workers.Preprocess(8, 8, 1, (0.5,), (0.25,))
        export(model, merged(model.state_dict()), preprocess, tmp_path, None)  # type: ignore[arg-type]
        found = open_checkpoint(str(tmp_path)).load()
        torch.testing.assert_close(found(images).logits, expected, rtol=1e-4, atol=1e-5)
    assert (expected - build(name).eval()(images).logits).abs().max() > 1e-3
    assert set(found.state_dict()) == set(build(name).state_dict())


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[Any, Any]]:
    """What two workers and one end with."""
    root = tmp_path_factory.mktemp("parts")
    out = {}
    for world in (2, 1):
        (root / str(world)).mkdir()
        out[world] = gloo_workers.launch(root / str(world), world, trainable_workers.fit_parts)[0]
    return out


def moved(state: dict[str, Tensor]) -> set[str]:
    start = gloo_workers.network().state_dict()
    assert state.keys() == start.keys()
    return {name for name, value in state.items() if not torch.equal(value, start[name])}


@pytest.mark.parametrize("part", trainable_workers.PARTS)
@pytest.mark.parametrize("engine", trainable_workers.ENGINES)
def test_two_workers_train_a_part_as_one_does(parts: dict[int, dict[Any, Any]], part: str, engine: str) -> None:
    one, two = parts[1][part, "ddp"], parts[2][part, engine]
    assert max(float((one[k].float() - two[k].float()).abs().max()) for k in one) < 2e-5
    head, last = {"classifier.weight", "classifier.bias"}, {n for n in two if n.startswith("stages.1.")}
    convolutions = {name for name in two if (name.startswith("stages.") and "conv" in name) or ".shortcut.0." in name}
    expected = {"head": head, "last_blocks": head | last, "lora": head | convolutions}[part]
    assert moved(one) == moved(two) == expected  # statistics of frozen layers stay, too; those of trained ones move
    if part == "last_blocks":
        assert any("running_mean" in name for name in last)


@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_low_rank_updates_go_on_with_another_number_of_workers(parts: dict[int, dict[Any, Any]], engine: str) -> None:
    one, resumed = parts[1]["lora", "ddp"], parts[1]["resumed", engine]
    assert max(float((one[k].float() - resumed[k].float()).abs().max()) for k in one) < 2e-5


def job(digits: Source, root: Path, *words: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The whole of a worker's job, in this process: load, train, merge, export. The weights before and after."""
    model = build(labels=tuple(digits.class_names))
    preprocess = gloo_workers.Preprocess(8, 8, 1, (0.5,), (0.25,))
    (root / "out").mkdir(parents=True)
    export(model, None, preprocess, root / "start", None)  # type: ignore[arg-type]
    given = ["data=digits", "method=negtv", "engine=ddp", "train.precision=fp32", "train.lr=0.1", *words]
    made = TrainJob(load(given).settings, digits, digits.class_names, preprocess, np.arange(64), 0, str(root / "out"),
                    str(root / "history.jsonl"), str(root / "start"), None)  # fmt: skip
    with stream.in_this_process():
        fit_here(made, root / "checkpoints")
    before, after = (open_checkpoint(str(root / name)).load().state_dict() for name in ("start", "out/model"))
    return before, after


def test_a_run_with_low_rank_updates_leaves_a_plain_model(digits: Source, tmp_path: Path) -> None:
    before, after = job(digits, tmp_path, "train.trainable=lora")
    assert before.keys() == after.keys()
    layers = {n for n in before if ".layers." in n and n.endswith(".weight") and before[n].ndim == 2}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == layers | {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("part", ["all", "lora"])
def test_activations_computed_again_train_the_same_weights(
    part: str, digits: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []  # through a block's normalisation, with gradients
    forward = nn.LayerNorm.forward

    def counted(self: nn.LayerNorm, x: Tensor) -> Tensor:
        passes[-1] += torch.is_grad_enabled()
        return forward(self, x)

    monkeypatch.setattr(nn.LayerNorm, "forward", counted)
    ends = []
    for again in ("false", "true"):
        passes.append(0)
        words = [f"train.trainable={part}", f"train.gradient_checkpointing={again}"]
        ends.append(job(digits, tmp_path / again, *words)[1])
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-4, atol=1e-6, msg=name)
    assert passes[0] > 0
    assert passes[1] > 1.5 * passes[0]


def test_a_request_is_refused_before_anything_starts(digits: Source, tmp_path: Path) -> None:
    export(
        build(labels=tuple(digits.class_names)),
        None,
        gloo_workers.Preprocess(8, 8, 1, (0.5,), (0.25,)),
        tmp_path / "m",
        None,
    )  # type: ignore[arg-type]

    def pipeline(*words: str) -> Pipeline:
        given = ["data=digits", *words]
        return Pipeline(load(given).settings, tmp_path / "run", Reporter(), digits)

    start, blocks = f"model.path={tmp_path / 'm'}", "train.trainable=last_blocks"
    pipeline(start, blocks, "train.last_blocks=3").check_method()
    with pytest.raises(UserError, match=r"train\.last_blocks=9: ViT\w+ has 3 blocks"):
        pipeline(start, blocks, "train.last_blocks=9").check_method()
    with pytest.raises(UserError, match=r"train\.trainable=last_blocks needs a trained model: set model\.path"):
        pipeline(blocks).check_trainable()
    told = dict(plan(pipeline(start, "train.trainable=head", "forget.classes=[three]", "oracle=uniform")))
    assert "of them trained" in told["parameters"]
    assert "of them trained" not in dict(plan(pipeline(start, "oracle=uniform")))["parameters"]


def test_only_trained_parameters_have_gradients_and_optimiser_state() -> None:
    some = TrainSettings(trainable="last_blocks", optimizer="adamw", precision="fp32")
    step, whole = measure(build, (1, 8, 8), 4, some), measure(build, (1, 8, 8), 4, TrainSettings(precision="fp32"))
    count = sum(p.numel() for p in freeze(build(), some).parameters() if p.requires_grad)
    assert (step.trained, step.parameters, whole.trained) == (count, whole.parameters, whole.parameters)
    held = memory(step, some, 0, "none")
    assert (held.weights, held.gradients, held.optimizer) == (4 * step.parameters, 4 * count, 8 * count)
    assert step.activations < 0.8 * whole.activations  # nothing is kept for blocks that are not trained
    low = measure(build, (1, 8, 8), 4, TrainSettings(trainable="lora", lora_rank=2, precision="fp32"))
    assert low.trained is not None
    assert low.trained < step.parameters < low.parameters


def test_settings_that_contradict_each_other() -> None:
    for method in ("ssd", "lfssd", "salun", "l1_sparse"):
        with pytest.raises(UserError, match=rf"method={method} picks single weights, which train\.trainable=lora"):
            check_method(load([f"method={method}", "train.trainable=lora"]).settings)
    for words, told in (
        (["train.trainable=hed"], r"train\.trainable=hed: .*head"),
        (["train.last_blocks=0"], r"train\.last_blocks=0: must be at least 1"),
        (["train.layer_decay=1.5"], r"train\.layer_decay=1\.5: must be greater than 0 and at most 1"),
        (["train.checkpoint_steps=0"], r"train\.checkpoint_steps=0: must be at least 1"),
        (["train.min_workers=3", "train.num_workers=2"], r"train\.min_workers=3 must be at most train\.num_workers=2"),
    ):
        with pytest.raises(UserError, match=told):
            check(load(["data=digits", *words]).settings)


def test_earlier_runs_keep_their_keys() -> None:
    def of(**changes: Any) -> dict[str, Any]:
        return keyed(vars(TrainSettings(**changes)))

    assert of() == of(checkpoint_steps=5, min_workers=1)
    assert not of().keys() & {"trainable", "last_blocks", "lora_rank", "layer_decay", "min_workers"}
    assert of(trainable="head")["trainable"] == "head"
    assert of(layer_decay=0.9)["layer_decay"] == 0.9
