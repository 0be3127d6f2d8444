"""Perturbed images on disk, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from megu_dist.data.perturbed import PerturbedStore, make_table
from megu_dist.data.readers import Augment, PerturbedReader
from megu_dist.errors import UserError

SHAPE = (3, 5, 4)
EPSILON = 4 / 255


def arrays(rows: list[int], draws: int) -> dict[str, Any]:
    """Random contents, a pure function of the rows."""
    rngs = [np.random.default_rng(row) for row in rows]

    def each(make: Any) -> np.ndarray:
        return np.stack([make(rng) for rng in rngs])

    return {
        "row": np.array(rows),
        "id": [f"image {row}" for row in rows],
        "label": np.array(rows) % 7,
        "image": each(lambda rng: rng.integers(0, 256, SHAPE, np.uint8)),
        "perturbing_label": each(lambda rng: rng.integers(0, 10, draws)),
        "noise_pos": each(lambda rng: rng.integers(-127, 128, (draws, *SHAPE), np.int8)),
        "noise_neg": each(lambda rng: rng.integers(-127, 128, SHAPE, np.int8)),
    }


def write(folder: Path, files: list[list[int]], draws: int, group: int = 3) -> dict[str, Any]:
    """Writes ``files``; returns the contents of all rows, by row."""
    folder.mkdir()
    for number, rows in enumerate(files):
        pq.write_table(
            make_table(arrays(rows, draws), SHAPE, EPSILON), folder / f"part-{number}.parquet", row_group_size=group
        )
    return arrays(sorted(row for rows in files for row in rows), draws)


@pytest.mark.parametrize("draws", [1, 3])
def test_rows_come_back_by_position_whatever_the_file(tmp_path: Path, draws: int) -> None:
    expected = write(tmp_path / "p", [[40, 41, 50, 51, 52, 57, 58], [3, 9, 10, 20], [60]], draws)
    store = PerturbedStore(tmp_path / "p")
    assert len(store) == 12
    assert np.array_equal(store.rows, expected["row"])
    assert (store.shape, store.draws, store.scale) == (SHAPE, draws, EPSILON / 127)
    positions = np.array([11, 0, 5, 5, 2, 8])
    for epoch in range(draws + 1):
        out = store.gather(positions, epoch)
        draw = epoch % draws
        assert np.array_equal(out["row"], expected["row"][positions])
        assert np.array_equal(out["label"], expected["label"][positions])
        assert np.array_equal(out["image"], expected["image"][positions])
        assert np.array_equal(out["noise_neg"], expected["noise_neg"][positions])
        assert np.array_equal(out["perturbing_label"], expected["perturbing_label"][positions, draw])
        assert np.array_equal(out["noise_pos"], expected["noise_pos"][positions, draw])
        assert out["noise_pos"].dtype == np.int8
        assert out["image"].dtype == np.uint8


def test_table_has_the_documented_columns(tmp_path: Path) -> None:
    write(tmp_path / "p", [[1, 2]], 2)
    table = pq.read_table(tmp_path / "p" / "part-0.parquet")
    assert table.column_names == ["row", "id", "label", "image", "perturbing_label", "noise_pos", "noise_neg"]
    assert table["id"].to_pylist() == ["image 1", "image 2"]
    assert len(table["image"][0].as_py()) == 60
    assert [len(noise) for noise in table["noise_pos"][1].as_py()] == [60, 60]


def test_reader_moves_image_and_noise_together(tmp_path: Path) -> None:
    expected = write(tmp_path / "p", [list(range(30))], 2)
    store = PerturbedStore(tmp_path / "p")
    plain = PerturbedReader(store, 5)({"row": np.arange(30)})
    assert np.array_equal(plain["noise_pos"], expected["noise_pos"][:, 1])
    moved = PerturbedReader(store, 5, Augment("flip", 0, 5))({"row": np.arange(30)})
    flipped = (moved["image"] == plain["image"][..., ::-1]).all((1, 2, 3))
    assert 5 < flipped.sum() < 25
    for name in ("image", "noise_pos", "noise_neg"):
        assert np.array_equal(moved[name][flipped], plain[name][flipped][..., ::-1])
        assert np.array_equal(moved[name][~flipped], plain[name][~flipped])


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no perturbed images"):
        PerturbedStore(tmp_path)
