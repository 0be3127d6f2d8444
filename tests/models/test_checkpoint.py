"""Any image classifier of transformers: built, exported, opened, loaded; and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from megu_dist.errors import UserError
from megu_dist.models.architectures.transformers import TransformersModel, TransformersSettings
from megu_dist.models.checkpoint import check_labels, export, open_checkpoint

NAMES = ["cat", "dog", "frog", "deer", "ship", "truck", "horse", "plane", "bird", "10", "eleven"]
TINY: dict[str, dict[str, Any]] = {
    "vit": {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "patch_size": 8,
    },
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1], "layer_type": "basic"},
    "convnext": {"hidden_sizes": [8, 8], "depths": [1, 1], "num_stages": 2},
    "swin": {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "patch_size": 4, "window_size": 4},
}  # fmt: skip


def tiny(kind: str, channels: int = 3) -> TransformersModel:
    settings = TransformersSettings(
        name="transformers", model_type=kind, config=dict(TINY.get(kind, {})), num_channels=channels, image_size=32,
        mean=[0.5], std=[0.25],
    )  # fmt: skip
    return TransformersModel(settings)


def make(folder: Path, kind: str = "convnext", seed: int = 0) -> Any:
    """Exports a tiny model; returns it."""
    torch.manual_seed(seed)
    model = tiny(kind).build(NAMES).eval()
    export(model, None, tiny(kind).preprocess(), folder, None)
    return model


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", TINY)
def test_export_open_load(kind: str, channels: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = tiny(kind, channels).build(NAMES).eval()
    export(
        model, {k: v.clone() for k, v in model.state_dict().items()}, tiny(kind, channels).preprocess(), tmp_path, None
    )
    checkpoint = open_checkpoint(str(tmp_path))
    assert checkpoint.labels == tuple(NAMES)  # eleven labels: "10" does not come after "1"
    assert checkpoint.preprocess == tiny(kind, channels).preprocess()
    check_labels(checkpoint, NAMES)
    loaded = checkpoint.load()
    assert not loaded.training
    images = torch.rand(2, channels, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixel_values=images).logits, model(pixel_values=images).logits)


def test_the_origins_preprocessor_is_kept(tmp_path: Path) -> None:
    model = make(tmp_path / "one")
    file = tmp_path / "one" / "preprocessor_config.json"
    file.write_text(
        json.dumps({"size": {"shortest_edge": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "mine": 1})
    )
    export(model, None, tiny("convnext").preprocess(), tmp_path / "two", tmp_path / "one")
    assert (tmp_path / "two" / "preprocessor_config.json").read_text() == file.read_text()


def test_fingerprint_follows_weights_config_and_preprocessing(tmp_path: Path) -> None:
    for folder, seed in (("one", 0), ("two", 1), ("three", 0)):
        make(tmp_path / folder, seed=seed)
    first, second, third = (open_checkpoint(str(tmp_path / name)).fingerprint() for name in ("one", "two", "three"))
    assert first == third != second
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copytree(tmp_path / "one", tmp_path / "changed", dirs_exist_ok=True)
        file = tmp_path / "changed" / name
        file.write_text(file.read_text().replace("\n}", ',\n "more": 1}'))
        assert open_checkpoint(str(tmp_path / "changed")).fingerprint() != first


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    model = make(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"model\.path=.*no \*\.safetensors.*pytorch_model\.bin is a pickle"):
        open_checkpoint(str(tmp_path))


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    with pytest.raises(UserError, match=r"evaluate\.retrained=.*no config\.json"):
        open_checkpoint(str(tmp_path / "models"), "evaluate.retrained")
    with pytest.raises(UserError, match=r"no such folder.*models"):
        open_checkpoint(str(tmp_path / "model"))
    make(tmp_path / "models")
    (tmp_path / "models" / "config.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        open_checkpoint(str(tmp_path / "models"))


def test_another_label_space_is_refused(tmp_path: Path) -> None:
    make(tmp_path)
    checkpoint = open_checkpoint(str(tmp_path))
    with pytest.raises(UserError, match="has 11 labels, but the data has 3 classes"):
        check_labels(checkpoint, ["a", "b", "c"])
    moved = [NAMES[1], NAMES[0], *NAMES[2:]]
    with pytest.raises(UserError, match="label 0 is 'cat' in the model and 'dog' in the data"):
        check_labels(checkpoint, moved)
    check_labels(checkpoint, [f"class {number}" for number in range(11)])  # other names say nothing about the order


def test_an_image_size_that_the_model_cannot_take_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "vit")
    file = tmp_path / "preprocessor_config.json"
    file.write_text(file.read_text().replace("32", "64"))
    with pytest.raises(UserError, match="resizes to 64×64, but the model takes 32×32"):
        open_checkpoint(str(tmp_path))


def test_unknown_architectures_and_settings() -> None:
    with pytest.raises(UserError, match=r"model\.model_type=convnex.*'convnext'"):
        tiny("convnex").build(NAMES)
    with pytest.raises(UserError, match="need 3 values each"):
        TransformersModel(TransformersSettings(name="transformers", model_type="vit", mean=[0.1, 0.2])).preprocess()
