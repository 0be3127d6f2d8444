"""What a data source offers: rows addressed by number, labels without images, and encoded images on request.

Rows of a split ("train", "test" or "validation") are numbered 0 … n-1 in a fixed order, so that a seed picks the same
images on any number of workers. Images stay encoded until a worker decodes them. A source is pickled to Ray workers:
it holds paths and offsets, never image bytes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from megu_dist.data.bad_rows import BadRows
    from megu_dist.data.decoded import DecodedImages

INDEX_SCHEMA = pa.schema([("row", pa.int64()), ("id", pa.string()), ("label", pa.int64())])
IMAGE_SCHEMA = pa.schema([*INDEX_SCHEMA, ("image", pa.binary())])


@dataclass(frozen=True)
class Piece:
    """A run of consecutive rows that one task can index: rows ``first`` … ``first + count - 1`` of a split."""

    split: str
    first: int
    count: int
    uri: str = ""  # file that holds the rows
    part: int = 0  # row group in that file


class Source(ABC):
    """A labelled image data set."""

    decoded: DecodedImages | None = None  # its images decoded beforehand, where somebody did so
    bad_rows: BadRows | None = None  # how many images of the current run may be unreadable; none: not a single one

    @property
    @abstractmethod
    def class_names(self) -> list[str]:
        """Names of the C classes, by label."""

    @property
    @abstractmethod
    def splits(self) -> list[str]:
        """Splits that exist; "train" always does."""

    @abstractmethod
    def pieces(self, split: str) -> list[Piece]:
        """The split cut into tasks, in row order."""

    @abstractmethod
    def index(self, piece: Piece) -> pa.Table:
        """Row number, id and label of a piece's rows (:data:`INDEX_SCHEMA`). Reads no image."""

    @abstractmethod
    def gather(self, split: str, rows: np.ndarray) -> pa.Table:
        """Rows ``rows`` (int64, any order) in that order, with encoded images (:data:`IMAGE_SCHEMA`)."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of what identifies the content: files, sizes, modification times, columns."""

    @property
    def fine(self) -> Source | None:
        """The same rows with fine labels and fine class names, where this source's labels are coarse."""
        return None

    def num_rows(self, split: str) -> int:
        """Number of rows of a split."""
        return sum(piece.count for piece in self.pieces(split))

    def quick_index(self, split: str) -> bool:
        """Whether indexing is a matter of microseconds a row: columns or names on this machine."""
        return False

    def encoded_bytes(self, split: str) -> float:
        """Mean size of an encoded image; 0 where it is not known."""
        return 0.0

    def locality(self, split: str, rows: np.ndarray) -> np.ndarray:
        """For each row, the number of the piece that holds it: rows of one piece are cheap to read together."""
        ends = np.cumsum([piece.count for piece in self.pieces(split)])
        return np.searchsorted(ends, rows, side="right")
