"""One training step's images on one worker, and the rows they come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megu_dist.data import plan, stream
from megu_dist.data.readers import without_bad

Reader = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


@dataclass
class Part:
    """Forget or retained images of a step on this worker. ``total`` counts the step's images on all workers."""

    total: int
    fields: dict[str, Tensor] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Tensor:
        try:
            return self.__dict__["fields"][name]
        except KeyError:
            raise AttributeError(name) from None

    def __len__(self) -> int:
        return len(self.fields["label"]) if self.fields else 0

    def slice(self, start: int, stop: int) -> Part:
        """Some of the images; ``total`` stays that of the step."""
        return replace(self, fields={name: value[start:stop] for name, value in self.fields.items()})

    def pixels(self) -> Tensor:
        """Images in pixel units [0, 1], (N, C, H, W)."""
        return self.image.float() / 255


@dataclass
class Batch:
    """A step: forget images (perhaps none) and retained images (perhaps none)."""

    forget: Part
    retain: Part
    epoch: int = 0
    progress: float = 0.0  # share of all steps that lie behind, 0 … 1

    def cut(self, passes: int) -> Iterator[Batch]:
        """The step in ``passes`` parts, each with its share of forget and of retained images (perhaps none)."""
        counts = (len(self.forget), len(self.retain))
        for k in range(passes):
            forget, retain = (
                part.slice(count * k // passes, count * (k + 1) // passes)
                for part, count in zip((self.forget, self.retain), counts, strict=True)
            )
            yield replace(self, forget=forget, retain=retain)


@dataclass(frozen=True)
class Rows:
    """A set of training rows: which there are in an epoch, in which order, and how they are read."""

    rows: Callable[[int], np.ndarray]  # epoch → row numbers in training order
    reader: Callable[[int], Reader]  # epoch → what Ray Data tasks run
    row_bytes: int
    count: int  # rows per epoch
    population: int = 0  # rows that the epochs draw from
    plain_reader: Callable[[int], Reader] | None = None  # the same images as they are, without augmentation
    asked: np.ndarray | None = None  # rows of the source that every epoch with any rows must hold exactly once
    encoded_bytes: float = 0.0  # of an image in its file

    def until(self, epochs: int) -> Rows:
        """The same rows in the first ``epochs`` epochs, none after."""
        return replace(self, rows=lambda epoch: self.rows(epoch) if epoch < epochs else self.rows(epoch)[:0])

    def plain(self) -> Rows:
        """The same rows without augmentation."""
        return self if self.plain_reader is None else replace(self, reader=self.plain_reader)

    def steps(self, epoch: int, steps: int, first: int, rank: int, world: int, device: torch.device) -> Iterator[Part]:
        """This worker's share of each step from ``first`` on, read through Ray Data in the planned order.

        Unreadable images that the run allows are left out of it and stay in ``total``: their weight is zero.
        """
        order = self.rows(epoch)
        count = len(order)
        sizes = [len(plan.rank_positions(count, steps, step, rank, world)) for step in range(first, steps)]
        low = plan.bounds(count, steps, first)[0]
        wanted = order[low + (rank - low) % world :: world]  # every step's positions, as a view
        groups: Iterator[dict[str, Any]] = ({} for _ in sizes)
        if len(wanted):
            readers = 0 if stream.few(len(wanted), self.row_bytes, self.encoded_bytes) else 1
            chunk = stream.task_rows(self.row_bytes)
            blocks = stream.blocks(wanted, self.reader(epoch), chunk, actors=readers, prefetch=2)
            groups = stream.in_steps(blocks, sizes)
        for step, arrays in zip(range(first, steps), groups, strict=True):
            low, high = plan.bounds(count, steps, step)
            yield Part(high - low, {name: _tensor(value, device) for name, value in without_bad(arrays).items()})


def _tensor(value: np.ndarray, device: torch.device) -> Tensor:
    # Ray's arrays are read-only views of the object store, unless several were joined.
    tensor = torch.from_numpy(value if value.flags.writeable else np.array(value))
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor
