"""Fits that train part of a model, on several engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gloo_workers import network
from resume_workers import fit, place
from torch import distributed

ENGINES = ["ddp", "zero0", "zero2", "zero3"]
PARTS = {
    "head": ["train.trainable=head"],
    "last_blocks": ["train.trainable=last_blocks", "train.layer_decay=0.5"],
    "lora": ["train.trainable=lora", "train.lora_rank=2"],
}
WORDS = ["train.batch_size=6", "train.checkpoint_steps=4", "train.lr=0.05"]


def fit_parts(rank: int, world: int) -> dict[Any, Any]:
    """A fit of each part on each engine; then low-rank updates begun by two workers, to be ended by one."""
    out: dict[Any, Any] = {}
    for part, words in PARTS.items():
        for name in ENGINES if world > 1 else ["ddp"]:
            root = place(f"{part}-{name}", str(world))
            out[part, name] = fit(name, rank, world, root, words=[*WORDS, *words], model=network())["weights"]
    for name in ("zero2", "zero3"):
        root: Path = place(name, "half")
        words = [*WORDS, *PARTS["lora"]]
        if world > 1:
            distributed.barrier()
            fit(name, rank, world, root, end_after=1, words=words, model=network())
        else:
            done = fit(name, rank, world, root, words=words, model=network())
            out["resumed", name] = done["weights"]
            assert done["told"]["resumed"] == {"epoch": 0, "step": 4, "workers": 2, "fresh_optimizer": None}
    return out
