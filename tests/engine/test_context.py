"""The fit loop on several workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gloo_workers
import numpy as np
import pytest
import torch

from megu_dist.config.compose import load
from megu_dist.engine.batch import Batch, Part
from megu_dist.engine.context import Context
from megu_dist.engine.coverage import Coverage
from megu_dist.models.preprocess import Preprocess


def test_a_worker_without_an_image_in_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget and retained images are dealt out separately, so a small batch may leave a worker without any."""
    monkeypatch.setenv("GLOO_FOLDER", str(tmp_path))
    expected = gloo_workers.run_sparse(0, 1)["weights"]
    found = gloo_workers.launch(tmp_path, 2, "run_sparse")[0]["weights"]
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).abs().max() < 1e-5, name


def test_one_forget_row_on_two_workers_is_covered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_FOLDER", str(tmp_path))
    expected = gloo_workers.run_one_forget_row(0, 1)
    ranks = gloo_workers.launch(tmp_path, 2, "run_one_forget_row")
    for name, value in expected["weights"].items():
        assert (ranks[0]["weights"][name] - value).abs().max() < 1e-5, name
    for found in (expected, *ranks):  # a lost row stops every worker alike
        assert "1 of 3 forget images were not seen exactly once (rows [2]" in found["error"]


def test_coverage_counts_rows_that_come_twice_or_were_not_asked_for() -> None:
    def seen(*rows: list[int]) -> Coverage:
        coverage = Coverage(np.array([7, 3, 9]), torch.device("cpu"))
        for some in rows:
            coverage.add(Part(2, {"row": torch.tensor(some), "label": torch.tensor(some)}))
        coverage.add(Part(2))
        return coverage

    seen([9, 3], [7]).check(1, 0)
    for rows in ([[3, 3], [7, 9]], [[3], [7]], [[3, 7], [9, 8]], [[3, 7], [9, 11]]):
        with pytest.raises(RuntimeError, match="epoch 4: "):
            seen(*rows).check(1, 4)


@pytest.mark.parametrize(
    ("scenario", "method", "expected"),
    [
        ("class", "random_label", 0.5 * 6 / 2 + 8 / 4),
        ("random", "random_label", (0.5 * 6 + 8) / 4),
        ("ids", "random_label", (0.5 * 6 + 8) / 4),
        ("random", "neggrad", 0.5 * 6 / 2 + 8 / 4),  # has no weight of forget images
    ],
)
def test_single_images_weigh_lambda_each_and_a_class_as_a_whole(
    scenario: str, method: str, expected: float, tmp_path: Path
) -> None:
    taken = []

    class Engine:
        def forward(self, x: torch.Tensor, last: bool = True) -> torch.Tensor:
            return x.flatten(1).requires_grad_()

        def step(self, loss: torch.Tensor, lr: float, last: bool = True) -> None:
            taken.append(float(loss))

    settings = load([f"forget.scenario={scenario}", f"method={method}"]).settings
    preprocess, engine = Preprocess(1, 1, 1, (0.5,), (0.5,)), Engine()
    context = Context(settings, engine, preprocess, torch.device("cpu"), 0, 1, 0, tmp_path / "log")  # type: ignore[arg-type]

    def part(count: int) -> Part:
        fields = {"label": torch.zeros(count), "image": torch.zeros(count, 1, 1, 1)}
        return Part(count, fields)

    def loss(forget: torch.Tensor, retain: torch.Tensor, batch: Batch) -> tuple[Any, Any, float]:
        return 6 + 0 * forget.sum(), 8 + 0 * retain.sum(), 0.5

    context._pass(Batch(part(2), part(4)), True, loss, Part.pixels, 0.1)
    assert taken == [pytest.approx(expected)]
