"""A small synthetic run folder, with every file a finished run leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

FASHION = ["T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
FORGET_FINAL = {"original": 0.84, "unlearned": 0.004, "retrained": 0.0}


@dataclass
class FakeRun:
    """What to fake; ``write`` makes the folder."""

    class_names: list[str] = field(default_factory=lambda: list(FASHION))
    forget: tuple[int, ...] = (6,)
    scenario: str = "class"
    channels: int = 1
    side: int = 12
    retrained: bool = True
    perturbed: bool = True
    history_per_epoch: bool = False
    changes: dict[str, Any] = field(default_factory=dict)  # of metrics.json
    seed: int = 0

    def write(self, folder: Path) -> Path:
        """The run folder."""
        self.rng = np.random.default_rng(self.seed)
        for name in ("split", "perturbed", "predictions"):
            (folder / name).mkdir(parents=True)
        models = ["original", "unlearned", *(["retrained"] if self.retrained else [])]
        for model in models:
            pq.write_table(self._predictions(model), folder / "predictions" / f"{model}.parquet")
        if self.perturbed:
            for part in range(2):
                pq.write_table(self._perturbed(), folder / "perturbed" / f"part-{part}.parquet", row_group_size=3)
        else:
            (folder / "perturbed").rmdir()
        config = {
            "method": {"name": "megu", "alpha": 0.5, "beta": 0.25},
            "oracle": {"api_key": "hunter2", "max_tokens": 7},
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        (folder / "split" / "manifest.json").write_text('{"counts": {"forget": 6000}}')
        (folder / "transition.json").write_text(json.dumps(self._transition()))
        (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in self._history()))
        (folder / "metrics.json").write_text(json.dumps(self._metrics(models) | self.changes))
        return folder

    def _metrics(self, models: list[str]) -> dict[str, Any]:
        whole = self.scenario == "class"
        values = {
            model: {
                "acc_retain_train": 0.951, "acc_forget_train": FORGET_FINAL[model],
                "acc_retain_test": {"original": 0.921, "unlearned": 0.918, "retrained": 0.92}[model],
                "acc_forget_test": FORGET_FINAL[model] + 0.003 if whole else None,
                "loss_retain_train": 0.1, "loss_forget_train": 4.2, "loss_retain_test": 0.25,
                "loss_forget_test": 4.4 if whole else None, "mia": 0.137,
            }
            for model in models
        }  # fmt: skip
        metrics: dict[str, Any] = {
            "schema": 1, "scenario": self.scenario, "method": "megu", "class_names": self.class_names, "models": values,
            "forget": {"count": 6000, "classes": [self.class_names[index] for index in self.forget] if whole else []},
            "seconds": {"split": 1.5, "oracle": 4.25, "perturb": 31, "finetune": 62.5, "evaluate": 20, "total": 119.3},
            "oracle": {"name": "embedding", "calls": 9, "stand_in": "text only: cosine of class-name embeddings"},
            "engine": {"name": "deepspeed", "zero_stage": 0, "world_size": 1},
            "environment": {"python": "3.11.9", "torch": "2.9", "ray": "2.60", "cpu": "any <cpu>"},
        }  # fmt: skip
        if self.retrained:
            metrics["versus_retrained"] = {
                "tow": 0.991, "tow_mia": 0.97, "avg_gap": 0.012, "kl_forget": 0.383, "activation_distance": 0.31,
            }  # fmt: skip
            metrics["seconds"]["retrained_training"] = 1300.0
        return metrics

    def _predictions(self, model: str) -> pa.Table:
        classes, rows = len(self.class_names), 60 * len(self.class_names)
        label = np.arange(rows) % classes
        test = np.arange(rows) >= rows // 2
        forgotten = np.isin(label, self.forget) if self.scenario == "class" else ~test & (self.rng.random(rows) < 0.1)
        right = self.rng.random(rows) < np.where(forgotten & (self.scenario == "class"), FORGET_FINAL[model], 0.9)
        other = (label + self.rng.choice([1, 2, 4, 8], rows, p=[0.5, 0.3, 0.15, 0.05])) % classes
        part = np.char.add(np.where(forgotten, "forget", "retain"), np.where(test, "_test", "_train"))
        probs = self.rng.dirichlet(np.ones(classes), rows).astype(np.float32)
        columns = {
            "id": [f"train-{row}" for row in range(rows)],
            "part": part.tolist(),
            "label": label,
            "prediction": np.where(right, label, other),
            "loss": self.rng.random(rows).astype(np.float32),
            "entropy": self.rng.random(rows).astype(np.float32),
            "probs": pa.FixedSizeListArray.from_arrays(pa.array(probs.ravel()), classes),
        }
        return pa.table(columns)

    def _perturbed(self, rows: int = 7) -> pa.Table:
        shape = (self.channels, self.side, self.side)
        ramp = np.linspace(0, 255, self.side)
        labels = [self.forget[row % len(self.forget)] for row in range(rows)]
        turned = [[(label + 1 + row) % len(self.class_names), 0] for row, label in enumerate(labels)]

        def noise() -> bytes:
            return (127 * self.rng.choice([-1, 1], shape)).astype(np.int8).tobytes()

        def image() -> bytes:
            tint = self.rng.random((self.channels, 1, 1))
            return (np.broadcast_to(ramp, shape) * tint).astype(np.uint8).tobytes()

        meta = {"shape": shape, "scale": 4 / 255 / 127, "epsilon": 4 / 255}
        return pa.table(
            {
                "row": pa.array(range(rows), pa.int64()),
                "id": [f"train-{row}" for row in range(rows)],
                "label": pa.array(labels, pa.int64()),
                "image": pa.array([image() for _ in range(rows)], pa.binary()),
                "perturbing_label": pa.array(turned, pa.list_(pa.int64())),
                "noise_pos": pa.array([[noise(), noise()] for _ in range(rows)], pa.list_(pa.binary())),
                "noise_neg": pa.array([noise() for _ in range(rows)], pa.binary()),
            }
        ).replace_schema_metadata({b"megu": json.dumps(meta).encode()})

    def _transition(self) -> dict[str, Any]:
        ratings = self.rng.uniform(0, 10, (len(self.forget), len(self.class_names)))
        weights = np.exp(ratings)
        weights[np.arange(len(self.forget)), list(self.forget)] = 0
        return {
            "rows": [self.class_names[index] for index in self.forget], "columns": self.class_names,
            "ratings": ratings.tolist(), "transition": (weights / weights.sum(1, keepdims=True)).tolist(),
            "tau": 1.0, "oracle": {"name": "embedding"}, "prompt_hash": "0", "calls": 9, "seconds": 4.2,
        }  # fmt: skip

    def _history(self) -> list[dict[str, Any]]:
        events = []
        for step in range(0, 96, 4):
            epoch, inside = divmod(step, 48)
            events.append(
                {
                    "epoch": epoch, "step": inside if self.history_per_epoch else step, "steps": 96,
                    "lr": 0.01 * (1 - step / 96),
                    "loss": 0.5, "loss_forget": None if step == 8 else 3 * 0.97**step + self.rng.random() / 9,
                    "loss_retain": 0.3 + self.rng.random() / 9, "images": 128, "seconds": step / 10,
                }
            )  # fmt: skip
        return events


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Write a run folder: ``make_run("name", channels=3, …)``."""
    return lambda name="run", **settings: FakeRun(**settings).write(tmp_path / name)
