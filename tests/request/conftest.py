"""A small model that nobody trained, for ledgers that do without a real unlearning."""

from __future__ import annotations

from pathlib import Path

import pytest

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture(scope="session")
def untrained_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from megu_dist.models.architectures.cifar_resnet import CifarResNet, CifarResNetSettings
    from megu_dist.models.checkpoint import export

    settings = CifarResNetSettings(name="cifar_resnet", width=2, stage_blocks=[1], num_channels=1, image_size=8)
    builder, folder = CifarResNet(settings), tmp_path_factory.mktemp("untrained") / "model"
    export(builder.build(NAMES), None, builder.preprocess(), folder, None)
    return folder
