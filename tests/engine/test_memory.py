"""The memory that `megu plan` foretells, against what autograd really saves and against DeepSpeed's own estimators."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from megu_dist.config.compose import load
from megu_dist.config.schema import TrainSettings
from megu_dist.engine.memory import FP32, Step, forecast, measure, memory
from megu_dist.models.architectures.cifar_resnet import CifarResNet, CifarResNetSettings
from megu_dist.models.architectures.transformers import TransformersModel, TransformersSettings

NAMES = ["a", "b", "c"]
TINY_VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "patch_size": 4,
}


def resnet() -> nn.Module:
    return CifarResNet(CifarResNetSettings(name="cifar_resnet", width=8, image_size=16)).build(NAMES)


def vit(**changes: Any) -> nn.Module:
    config = TINY_VIT | changes
    return TransformersModel(
        TransformersSettings(name="transformers", model_type="vit", image_size=16, config=config)
    ).build(NAMES)


def saved_bytes(model: nn.Module, images: int) -> int:
    """Of a real forward pass: every storage that autograd keeps, parameters aside."""
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model.train()(pixel_values=torch.rand(images, 3, 16, 16))
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert output.logits.requires_grad
    return sum(storage.nbytes() for key, storage in kept.items() if key not in own)


@pytest.mark.parametrize("build", [resnet, vit])
def test_activations_are_those_that_a_real_pass_keeps(build: Any) -> None:
    step = measure(build, (3, 16, 16), 5, TrainSettings(precision="fp32"))
    assert step.activations == pytest.approx(saved_bytes(build(), 5), rel=0.02)
    assert step.parameters == sum(p.numel() for p in build().parameters())


def test_activations_grow_with_the_images_and_shrink_with_checkpointing_and_bf16() -> None:
    plain = measure(vit, (3, 16, 16), 8, TrainSettings(precision="fp32"))
    double = measure(vit, (3, 16, 16), 16, TrainSettings(precision="fp32"))
    assert double.activations == pytest.approx(2 * plain.activations, rel=0.05)
    assert double.flops == 2 * plain.flops
    checkpointed = measure(vit, (3, 16, 16), 8, TrainSettings(precision="fp32", gradient_checkpointing=True))
    assert checkpointed.activations < 0.5 * plain.activations
    assert measure(vit, (3, 16, 16), 8, TrainSettings(precision="bf16")).activations < 0.8 * plain.activations


def test_forward_operations_of_a_transformer_are_the_textbook_ones() -> None:
    """2 operations per weight and token, and 4·L·d per token and layer for attention (Kaplan et al. 2020)."""
    big = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
    step = measure(lambda: vit(**big), (3, 16, 16), 2, TrainSettings(precision="fp32"))
    tokens, dim, layers = 17, 128, 4
    expected = 2 * tokens * layers * (2 * 12 * dim**2 + 4 * tokens * dim)
    assert step.flops == pytest.approx(expected, rel=0.05)


STEP = Step(parameters=300_000_000, largest=4_000_000, images=1, activations=0, flops=0)


@pytest.mark.parametrize("workers", [1, 8, 32])
def test_model_states_agree_with_deepspeeds_estimators(workers: int) -> None:
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    train = TrainSettings(num_workers=workers, optimizer="adamw")
    _, two = estimate_zero2_model_states_mem_needs(STEP.parameters, 1, workers, cpu_offload=False)
    halves = 2 * STEP.parameters  # DeepSpeed assumes 16-bit parameters; they are fp32 here
    assert memory(STEP, train, 2, "none").total - halves == pytest.approx(two, rel=0.15)
    _, three, _ = estimate_zero3_model_states_mem_needs(
        STEP.parameters, STEP.largest, 1, workers, cpu_offload=False, cpu_offload_params=False, zero_init=True
    )
    assert memory(STEP, train, 3, "none").total == pytest.approx(three, rel=0.15)


def test_stages_and_offload_take_memory_away_one_after_the_other() -> None:
    train = TrainSettings(num_workers=8, optimizer="adamw")
    totals = [memory(STEP, train, stage, "none").total for stage in (0, 1, 2, 3)]
    totals += [memory(STEP, train, 3, offload).total for offload in ("optimizer", "parameters")]
    assert totals == sorted(totals, reverse=True)
    assert len(set(totals)) == len(totals)
    assert memory(STEP, TrainSettings(optimizer="sgd"), 0, "none").total == 3 * FP32 * STEP.parameters


def test_the_forecast_counts_steps_images_and_operations() -> None:
    words = [
        "train.batch_size=64",
        "train.num_workers=4",
        "train.epochs=3",
        "train.retain_per_epoch=500",
        "perturb.steps=2",
    ]
    settings = load([*words, "perturb.draws=2", "train.precision=fp32", "engine=ddp", "train.optimizer=sgd"]).settings
    lines = dict(forecast(settings, vit, (3, 16, 16), 140, 10_000))
    assert lines["fine-tuning"] == "3 × 10 steps, 1,920 images, workers: 4"
    one = measure(vit, (3, 16, 16), 16, settings.train)
    assert "(16 images a pass)" in lines["memory per worker"]
    tuning, noise = 3 * 640 * 3 * one.flops / 16, 140 * (1 + 2 * 2 * 3) * one.flops / 16
    told = [float(number) for number in re.findall(r"[\d.e-]+(?= PFLOP| of perturbing)", lines["operations"])]
    assert told == pytest.approx([tuning / 1e15, noise / 1e15], rel=0.01)
    assert " 0 of perturbing" in dict(forecast(settings, vit, (3, 16, 16), 140, 10_000, None))["operations"]
