"""What of a model is trained, and how fast: ``train.trainable`` and ``train.layer_decay``.

``lora`` (Hu et al. 2022, "LoRA: Low-rank adaptation of large language models"): each linear layer and convolution of
the blocks gets a trained update B·A of rank ``train.lora_rank`` (scale 1); the head is trained as a whole. The updates
are added to the weights before export. ``layer_decay`` γ (Bao et al. 2022, "BEiT"): with n blocks, the head learns with
the full rate, block k with γ^(n+1-k) of it, what comes before the first block with γ^(n+1).
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from megu_dist.errors import UserError
from megu_dist.models.blocks import blocks, depths

if TYPE_CHECKING:
    from torch import Tensor, nn

    from megu_dist.config.schema import TrainSettings


def check(model: nn.Module, train: TrainSettings) -> None:
    """Refuses what the model has no parts for. Raises :class:`UserError`."""
    found, name = len(blocks(model)), type(model).__name__
    if train.trainable == "last_blocks" and train.last_blocks > found:
        raise UserError(f"train.last_blocks={train.last_blocks}: {name} has {found} blocks; ask for at most {found}")
    if (train.trainable == "lora" or train.layer_decay != 1) and not found:
        key = "train.trainable=lora" if train.trainable == "lora" else f"train.layer_decay={train.layer_decay}"
        raise UserError(f"{key}: no chain of blocks was found in {name}; leave it out, or use another model")
    if train.trainable in ("head", "lora") and not _head(model):
        raise UserError(f"train.trainable={train.trainable}: {name} ends in no linear layer; use train.trainable=all")
    if train.trainable == "lora" and importlib.util.find_spec("peft") is None:
        raise UserError("train.trainable=lora needs peft: pip install 'megu-dist[lora]'")


def freeze(model: nn.Module, train: TrainSettings) -> nn.Module:
    """Leaves a gradient to what ``head`` and ``last_blocks`` train; the model itself."""
    check(model, train)
    if train.trainable in ("head", "last_blocks"):
        if train.trainable == "head":
            trained = _head(model)
        else:
            trained = {name for name, depth in depths(model).items() if depth > len(blocks(model)) - train.last_blocks}
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trained)
    return model


def add_low_rank(model: nn.Module, train: TrainSettings, seed: int) -> nn.Module:
    """With ``lora``, puts a low-rank update beside each layer of the blocks; the model itself."""
    if train.trainable != "lora":
        return model
    import torch
    from peft import LoraConfig, inject_adapter_in_model
    from torch import nn

    head = _head(model)
    prefixes = tuple(f"{name}." for name, _ in blocks(model))
    targets = [
        name
        for name, module in model.named_modules()
        if name.startswith(prefixes)
        and (isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1))
    ]
    config = LoraConfig(r=train.lora_rank, lora_alpha=train.lora_rank, target_modules=targets)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        if name in head:
            parameter.requires_grad_(True)
    return model


def merged(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A model's weights with low-rank updates added to what they update; other weights as they are."""
    out = {name.replace(".base_layer.", "."): value for name, value in state.items() if ".lora_" not in name}
    for name, a in state.items():
        if ".lora_A." in name:
            weight, b = name.split(".lora_A.")[0] + ".weight", state[name.replace(".lora_A.", ".lora_B.")]
            out[weight] = out[weight] + (b.flatten(1) @ a.flatten(1)).view_as(out[weight])
    return out


def rates(model: nn.Module, decay: float) -> dict[str, float]:
    """Parameter name → its share of the learning rate."""
    if decay == 1:
        return {}
    top = len(blocks(model)) + 1
    return {name: decay ** (top - depth) for name, depth in depths(model).items()}


def _head(model: nn.Module) -> set[str]:
    """Names of the parameters of the linear layers that end in the labels."""
    from torch import nn

    labels, after = int(getattr(model.config, "num_labels", 0)), len(blocks(model)) + 1
    last = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == labels
    }
    found = depths(model)
    return {name for name, depth in found.items() if name.rpartition(".")[0] in last and depth == after}


def recompute_activations(model: nn.Module) -> None:
    """Gradient checkpointing of a transformers model: blocks' activations are computed again in the backward pass."""
    # the second is its older name, of which transformers warns
    enable: Any = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
