"""The blocks that a classifier is a chain of, found from its modules: no architecture is named here."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

Named = list[tuple[str, "nn.Module"]]


def stages(model: nn.Module) -> Named:
    """The children of the model's largest list of modules, by name, in order; none for a model without a list.

    That is ``stages`` of the CIFAR ResNet, the encoder's layers of a vision transformer, the stages of a ConvNet.
    """
    lists = [(name, module) for name, module in model.named_modules() if _is_list(module)]
    if not lists:
        return []
    # The first of equals: the outermost.
    name, chosen = max(lists, key=lambda entry: (_size(entry[1]), len(list(entry[1].children()))))
    return [(f"{name}.{key}", child) for key, child in chosen.named_children()]


def blocks(model: nn.Module) -> Named:
    """The stages, or where a stage is mostly a list of equals (Swin, ConvNeXt, ResNet), what that list holds."""
    found: Named = []
    for name, stage in stages(model):
        inner = [
            (f"{name}.{key}", module)
            for key, module in stage.named_children()
            if _is_list(module) and len({type(m) for m in module.children()}) == 1 and 2 * _size(module) > _size(stage)
        ]
        if inner:
            prefix, module = inner[0]
            found += [(f"{prefix}.{key}", child) for key, child in module.named_children()]
        else:
            found.append((name, stage))
    return found


def depths(model: nn.Module) -> dict[str, int]:
    """Parameter name → 0 before the first of n blocks, 1 … n in them, n + 1 after the last.

    What a stage has beside its blocks (Swin and ConvNeXt shrink the image there) counts as its nearest block's.
    """
    named = [f"{name}." for name, _ in blocks(model)]
    first = {}  # of a stage: the depth of its first block
    for stage, _ in stages(model):
        first[f"{stage}."] = 1 + next(k for k, block in enumerate(named) if block.startswith(f"{stage}."))
    out, reached = {}, 0
    for name, _ in model.named_parameters():
        inside = next((k + 1 for k, block in enumerate(named) if name.startswith(block)), None)
        beside = next((depth for stage, depth in first.items() if name.startswith(stage)), None)
        if inside is not None:
            reached = inside
        elif beside is not None:
            inside = max(beside, reached)
        out[name] = inside if inside is not None else (len(named) + 1 if reached else 0)
    return out


def _is_list(module: nn.Module) -> bool:
    from torch import nn

    return isinstance(module, nn.ModuleList | nn.Sequential)


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
