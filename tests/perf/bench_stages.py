"""Stages against bare loops over the same model, batches and threads, with the images in memory; one process each.

Run by ``make bench``. Runs alternate, so that a busy machine slows both sides alike; what counts is the ratio.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from megu_dist.config.compose import load
from megu_dist.config.registry import lookup
from megu_dist.config.schema import PerturbSettings
from megu_dist.data import stream
from megu_dist.data.decoded import decode_all
from megu_dist.data.open import open_source
from megu_dist.engine import inline
from megu_dist.engine.base import autocast, make_optimizer
from megu_dist.engine.worker import TrainJob
from megu_dist.metrics.predict import Predictor
from megu_dist.models.architectures.cifar_resnet import CifarResNet, CifarResNetSettings
from megu_dist.models.checkpoint import export, open_checkpoint
from megu_dist.oracle.transition import Transition
from megu_dist.perturb.actor import Perturber
from megu_dist.perturb.noise import fragment_align

pytestmark = pytest.mark.perf
RUNS = 5
IMAGES, SIDE, BATCH, CLASSES = 1024, 32, 128, 10
WORDS = [
    "engine=ddp",
    "method=retrain",
    "train=scratch",
    "train.augment=none",
    "train.threads=1",
    f"train.batch_size={BATCH}",
]


def compare(name: str, ours: Callable[[], int], bare: Callable[[], int]) -> float:
    """Medians of alternating runs in images per second; prints them and returns ours / bare."""
    rates: dict[str, list[float]] = {"ours": [], "bare": []}
    for _ in range(RUNS + 1):
        for side, run in (("ours", ours), ("bare", bare)):
            start = time.perf_counter()
            images = run()
            rates[side].append(images / (time.perf_counter() - start))
    medians = {side: statistics.median(found[1:]) for side, found in rates.items()}  # the first runs warm up
    pairs = [a / b for a, b in zip(rates["ours"][1:], rates["bare"][1:], strict=True)]
    ratio = statistics.median(pairs)
    print(f"\n{name}: {medians['ours']:,.0f} images/s, bare {medians['bare']:,.0f}, ratio {ratio:.2f} "
          f"({min(pairs):.2f} to {max(pairs):.2f})")  # fmt: skip
    return ratio


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def settings() -> CifarResNetSettings:
    return CifarResNetSettings(name="cifar_resnet", width=16, image_size=SIDE)


@pytest.fixture(scope="module")
def folder(settings: CifarResNetSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model")
    kind = CifarResNet(settings)
    model = kind.build([str(i) for i in range(CLASSES)])
    export(model, model.state_dict(), kind.preprocess(), out, None)
    return out


@pytest.fixture(scope="module")
def images() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (IMAGES, 3, SIDE, SIDE), dtype=np.uint8), rng.integers(0, CLASSES, IMAGES)


def normalised(part: np.ndarray, preprocess: Any) -> torch.Tensor:
    pixels = torch.from_numpy(part).float() / 255
    return preprocess.normalise(pixels).contiguous(memory_format=torch.channels_last)


BACKBONES = {
    "ResNet-18 width 16, 32 px": ["model.width=16", "model.num_channels=1", "model.image_size=32", "train.epochs=4"],
    "ViT-S/16, 224 px": [
        "model=transformers",
        "model.model_type=vit",
        "model.num_channels=1",
        "model.mean=[0.5]",
        "model.std=[0.5]",
        "model.config={hidden_size:384,num_hidden_layers:12,num_attention_heads:6,intermediate_size:1536}",
        "train.epochs=1",
        "train.retain_per_epoch=128",
        "train.batch_size=32",
    ],
}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_finetune_step_rate(backbone: str, tmp_path: Path) -> None:
    """The fit loop on the digits, decoded beforehand, against a loop over the same arrays."""
    found = load([*WORDS, "data=digits", f"data.cache_dir={tmp_path}", *BACKBONES[backbone]]).settings
    train, source = found.train, open_source(found.data)
    kind = lookup("model", found.model.name).target(found.model)
    preprocess, names = kind.preprocess(), source.class_names
    with stream.in_this_process():
        source.decoded = decode_all(source, preprocess, tmp_path / "decoded", lambda _: None)
    table, pixels = source.decoded.read("train", np.arange(source.num_rows("train")), preprocess)
    labels = torch.from_numpy(table["label"].to_numpy().copy())
    per_epoch = train.retain_per_epoch or len(labels)

    def ours() -> int:
        out = tmp_path / f"out-{time.monotonic_ns()}"
        (out / "model").parent.mkdir()
        job = TrainJob(
            found, source, names, preprocess, np.zeros(0, np.int64), 0, str(out), str(out / "log.jsonl"), None, None
        )
        with stream.in_this_process():
            inline.fit_here(job, out / "checkpoints")
        return per_epoch * train.epochs

    def bare() -> int:
        model = kind.build(names).train()
        optimizer = make_optimizer(model, train)
        for _ in range(train.epochs):
            for rows in torch.randperm(len(labels))[:per_epoch].split(train.batch_size):
                with autocast(train.precision, torch.device("cpu")):
                    logits = model(pixel_values=normalised(pixels[rows.numpy()], preprocess)).logits.float()
                cross_entropy(logits, labels[rows]).backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        return per_epoch * train.epochs

    assert compare(f"finetune, {backbone}", ours, bare) > 0.5


def test_perturb(folder: Path, images: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    """The model actor's blocks, with labels and files, against the same forward and backward passes."""
    pixels, labels = images
    options = PerturbSettings(steps=2, batch_size=BATCH, noise="both")
    transition = Transition(np.full((1, CLASSES), 1 / CLASSES), (0,))
    ids = np.array([str(i) for i in range(IMAGES)], dtype=object)
    actor = Perturber(str(folder), transition, [0], options, 0, str(tmp_path), 1)
    torch.set_num_threads(1)
    block = {"row": np.arange(IMAGES), "id": ids, "label": np.zeros(IMAGES, np.int64), "image": pixels}

    def ours() -> int:
        actor(block)
        return IMAGES

    def bare() -> int:
        for start in range(0, IMAGES, BATCH):
            part = torch.from_numpy(pixels[start : start + BATCH]).float() / 255
            target = torch.from_numpy(labels[start : start + BATCH])
            with torch.no_grad():
                actor.frozen.logits(part)
            for towards in (True, False):
                fragment_align(actor.frozen.logits, part, target, towards, options.epsilon, options.steps)
        return IMAGES

    assert compare("perturb", ours, bare) > 0.5


def test_evaluate(folder: Path, images: tuple[np.ndarray, np.ndarray]) -> None:
    """The model actor's blocks against a plain loop without gradients."""
    pixels, labels = images
    found = load(["engine=ddp"]).settings.evaluate
    actor = Predictor({"original": str(folder)}, found, 1)
    torch.set_num_threads(1)
    checkpoint = open_checkpoint(str(folder))
    model = checkpoint.load().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    block = {"row": np.arange(IMAGES), "id": labels, "label": labels, "part": labels, "image": pixels}

    def ours() -> int:
        actor(block)
        return IMAGES

    def bare() -> int:
        with torch.inference_mode():
            for start in range(0, IMAGES, found.batch_size):
                model(
                    pixel_values=normalised(pixels[start : start + found.batch_size], checkpoint.preprocess)
                ).logits.softmax(1)
        return IMAGES

    assert compare("evaluate", ours, bare) > 0.5
