"""What the driver knows of a multimodal model before anything loads: its identity, and settings that cannot work."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest
import tiny_vlm

from megu_dist.errors import UserError
from megu_dist.oracle.backends.mllm import MllmOracle, MllmSettings
from megu_dist.oracle.base import About


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vlm.llava(tmp_path_factory.mktemp("vlm"))


def about(path: object, **options: Any) -> About:
    return MllmOracle.about(MllmSettings(name="mllm", path=None if path is None else str(path), **options))


def test_the_folder_is_the_identity(folder: Path) -> None:
    known = about(folder)
    assert known == about(folder)
    assert known.id.startswith(f"mllm:{folder.name}:")
    assert not known.stand_in
    assert not known.symmetric
    assert len(set(known.prompts)) == 3


@pytest.mark.parametrize("changed", ["config.json", "chat_template.jinja", "tokenizer.json", "model.safetensors"])
def test_the_identity_changes_with_the_content_of_the_folder(folder: Path, changed: str) -> None:
    before = about(folder).id
    file = folder / changed
    file.write_bytes(file.read_bytes() + b"\n")
    assert about(folder).id != before


def test_the_identity_changes_with_large_weights_of_the_same_size(folder: Path) -> None:
    large = folder / "model-2.safetensors"
    large.write_bytes(b"a" * (2 << 20))
    os.utime(large, ns=(0, 0))
    before = about(folder).id
    os.utime(large, ns=(0, 1))
    assert about(folder).id != before


def test_a_hub_id_is_known_by_its_revision() -> None:
    assert about("org/vlm").id == "mllm:org/vlm@main"
    assert about("org/vlm", revision="v2").id == "mllm:org/vlm@v2"


@pytest.mark.parametrize(
    ("option", "asked_alike"),
    [({"prior": 0.0}, False), ({"min_mass": 0.5}, False), ({"dtype": "bfloat16"}, False),
     ({"images": 4}, True), ({"reuse_prefix": False}, True), ({"max_batch_size": 3}, True), ({"num_gpus": 1.0}, True)],
)  # fmt: skip
def test_what_changes_ratings_changes_the_prompt_hash(folder: Path, option: dict[str, Any], asked_alike: bool) -> None:
    one, other = about(folder), about(folder, **option)
    assert one.id == other.id
    assert (set(one.prompts) == set(other.prompts)) == asked_alike
    assert asked_alike or not set(one.prompts) & set(other.prompts)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"dtype": "bfloat"}, "oracle.dtype=bfloat: did you mean 'bfloat16'"),
        ({"dtype": "int4"}, "oracle.dtype=int4"),
        ({"prior": 1.5}, "oracle.prior=1.5: must be between 0 and 1"),
        ({"min_mass": -0.1}, "oracle.min_mass=-0.1: must be between 0 and 1"),
    ],
)
def test_wrong_values_are_refused(folder: Path, options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as refusal:
        about(folder, **options)
    assert told in str(refusal.value)


@pytest.mark.skipif(importlib.util.find_spec("accelerate") is not None, reason="accelerate is installed")
def test_a_device_map_needs_accelerate(folder: Path) -> None:
    with pytest.raises(UserError, match=r"oracle\.device_map needs accelerate: pip install 'megu-dist\[oracle\]'"):
        about(folder, device_map="auto")


def test_no_path_is_refused() -> None:
    with pytest.raises(UserError, match=r"oracle=mllm needs oracle\.path"):
        about(None)


@pytest.mark.parametrize("path", ["./models/vlm", "models/of/vlm", "/no/such/vlm", "~/no/such/vlm"])
def test_a_folder_that_is_not_there_is_not_taken_for_a_hub_id(
    path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        about(path)


@pytest.mark.parametrize("config", [None, "{", "[]", '"x"', '{"hidden_size": 3}'])
def test_a_folder_without_a_model_config_is_refused(tmp_path: Path, config: str | None) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match=r"no config\.json with a model_type"):
        about(tmp_path)


def test_weights_that_are_not_safetensors_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"no \*\.safetensors"):
        about(tmp_path)


@pytest.mark.parametrize(
    ("kind", "packages"),
    [("qwen2_5_vl", ["torchvision"]), ("internvl", ["torchvision"]), ("smolvlm", ["torchvision", "num2words"])],
)
def test_a_family_that_needs_more_packages_says_which(tmp_path: Path, kind: str, packages: list[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if not missing:
        pytest.skip("all of them are installed")
    with pytest.raises(UserError) as refusal:
        about(tmp_path)
    assert f"models of type {kind} need {' and '.join(missing)}: pip install 'megu-dist[oracle]'" in str(refusal.value)
