"""Checkpoints that ZeRO sharded over some number of workers, dealt out anew over another.

DeepSpeed's own ways do not serve here: ``load_checkpoint`` insists on the same number of workers, and universal
checkpoints know Adam's state only and lose buffers. Weights and buffers are put together by ``zero_to_fp32``. A
worker's shard of the optimiser's state is a flat vector for each group of parameters, laid out as its fp32 weights are:
the whole is put together from all shards, and each worker takes its part of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Shard = list[dict[str, Any]]  # of one worker: for each group, the optimiser's state by key


def restore(engine: Any, folder: Path) -> str | None:
    """Gives ``engine`` (ZeRO 1 to 3, just made) what is in ``folder``; returns why the optimiser's state failed, if so."""
    _load_weights(engine, folder)
    try:
        _restore(engine, folder)
    except Exception as error:  # DeepSpeed's internals, and what they raise, change between versions
        engine.optimizer.optimizer.state.clear()
        return f"{type(error).__name__}: {error}"
    return None


def _load_weights(engine: Any, folder: Path) -> None:
    """Parameters and buffers; one parameter at a time is whole on a device."""
    from deepspeed import zero
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    whole = get_fp32_state_dict_from_zero_checkpoint(str(folder.parent), folder.name, lazy_mode=True)
    sharded = engine.zero_optimization_stage() == 3
    if sharded:
        engine.optimizer.checkpoint_event_prologue()
    for name, parameter in engine.module.named_parameters():
        with zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.data.copy_(whole[name].contiguous())
    for name, buffer in engine.module.named_buffers():
        if name in whole:
            buffer.copy_(whole[name])
    engine.optimizer.refresh_fp32_params()
    if sharded:
        engine.optimizer.checkpoint_event_epilogue()


def _restore(engine: Any, folder: Path) -> None:
    import torch

    saved, shapes, paddings = _read(folder, engine.zero_optimization_stage())
    state = engine.optimizer.optimizer.state
    state.clear()
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    for key, first in saved[0][0].items() if saved[0] else ():
        sharded = torch.is_tensor(first) and first.dim() > 0
        if sharded:
            flat = [[group[key] for group in shard] for shard in saved]
            whole = dict(_merge_zero3(flat, shapes) if paddings is None else _merge(flat, shapes, paddings))
        for parameter, mine, at, start, count in _places(engine):
            if not sharded:  # a counter, the same on every worker
                state[mine][key] = first.clone() if torch.is_tensor(first) else first
                continue
            if key not in state[mine]:
                state[mine][key] = torch.zeros_like(mine)
            part = whole[names[id(parameter)]].flatten()[start : start + count]
            state[mine][key][at : at + len(part)].copy_(part)


def _read(folder: Path, stage: int) -> tuple[list[Shard], list[dict[str, Any]], list[list[int]] | None]:
    """What the workers saved, the parameters' shapes by group, and (ZeRO 1 and 2) the padding after each of them."""
    import torch
    from deepspeed.utils import zero_to_fp32 as files

    def load(path: str) -> dict[str, Any]:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=False)  # the run's own file

    shapes = load(files.get_model_state_file(str(folder), stage))["param_shapes"]
    found = [load(path)["optimizer_state_dict"] for path in files.get_optim_files(str(folder))]
    kept = [one["optimizer_state_dict" if stage == 3 else "base_optimizer_state"]["state"] for one in found]
    saved = [[state[group] for group in sorted(state)] for state in kept]
    return saved, shapes, None if stage == 3 else found[0]["param_alignment_paddings"]


def _merge(
    flat: list[list[Tensor]], shapes: list[dict[str, Any]], paddings: list[list[int]]
) -> Iterator[tuple[str, Tensor]]:
    """ZeRO 1 and 2: a group's vector, cut into equal parts, holds its parameters one after the other."""
    import torch

    for group, named in enumerate(shapes):
        vector = torch.cat([shard[group] for shard in flat])
        sizes = [shape.numel() for shape in named.values()]
        starts = [0, *accumulate(size + gap for size, gap in zip(sizes, paddings[group], strict=True))]
        for name, start, size in zip(named, starts, sizes, strict=False):
            yield name, vector[start : start + size]


def _merge_zero3(flat: list[list[Tensor]], shapes: list[dict[str, Any]]) -> Iterator[tuple[str, Tensor]]:
    """ZeRO 3: each parameter is cut into equal parts, the last one padded."""
    import torch

    vectors, start = [torch.cat(shard) for shard in flat], 0
    for name, shape in ((name, shape) for named in shapes for name, shape in named.items()):
        part = -(-shape.numel() // len(flat))
        yield name, torch.cat([vector[start : start + part] for vector in vectors])[: shape.numel()]
        start += part


def _places(engine: Any) -> Iterator[tuple[Any, Tensor, int, int, int]]:
    """Parameter, this worker's flat vector that holds a part of it, where in the vector; where the part starts, its size."""
    optimizer = engine.optimizer
    if engine.zero_optimization_stage() == 3:
        for parameter in engine.module.parameters():
            if parameter.requires_grad:
                group, at, count = optimizer.grad_position[optimizer.get_param_id(parameter)]
                rank = optimizer._get_param_partition_rank(parameter)
                yield parameter, optimizer.fp32_partitioned_groups_flat[group], at, rank * count, count
        return
    for group, mine in enumerate(optimizer.single_partition_of_fp32_groups):
        for parameter in optimizer.bit16_groups[group]:
            if (mapping := parameter._hp_mapping) is not None:
                here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
                yield parameter, mine, here.start, there.start, there.numel
