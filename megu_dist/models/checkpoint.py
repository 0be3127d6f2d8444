"""Loads, checks and writes transformers image classifiers. Weights are safetensors; nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megu_dist.errors import UserError, nearest
from megu_dist.models.preprocess import FILE as PREPROCESSOR_FILE
from megu_dist.models.preprocess import Preprocess

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Checkpoint:
    """A model folder whose config and preprocessing were read and found consistent; the weights are not loaded yet."""

    folder: Path
    num_labels: int
    labels: tuple[str, ...]  # id2label, in order
    preprocess: Preprocess

    def load(self) -> PreTrainedModel:
        """The classifier in fp32 on the CPU, in evaluation mode."""
        import torch
        from transformers import AutoModelForImageClassification

        model = AutoModelForImageClassification.from_pretrained(
            self.folder, use_safetensors=True, dtype=torch.float32, local_files_only=True
        )
        return model.eval()

    def fingerprint(self) -> str:
        """SHA-256 of the weights, config and preprocessing."""
        digest = hashlib.sha256()
        for path in sorted(
            [*self.folder.glob("*.safetensors"), self.folder / "config.json", self.folder / PREPROCESSOR_FILE]
        ):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
        return digest.hexdigest()


def untrained(folder: Path) -> PreTrainedModel:
    """The architecture in a model folder, without its weights."""
    from transformers import AutoConfig, AutoModelForImageClassification

    return AutoModelForImageClassification.from_config(AutoConfig.from_pretrained(folder, local_files_only=True))


def open_checkpoint(path: str, key: str = "model.path") -> Checkpoint:
    """Reads a model folder or hub id without loading weights. Raises :class:`UserError` that names what is wrong."""
    folder = _resolve(path, key)
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise UserError(
            f"{key}={path}: no config.json there, so it is not a transformers checkpoint; give a folder that "
            "save_pretrained wrote"
        )
    if not list(folder.glob("*.safetensors")):
        unsafe = [file.name for file in folder.glob("*.bin")]
        hint = f" ({unsafe[0]} is a pickle and is not read: convert it with save_pretrained)" if unsafe else ""
        raise UserError(f"{key}={path}: no *.safetensors weights there{hint}; save them with save_pretrained")
    try:
        config: dict[str, Any] = json.loads(config_file.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{config_file} is not JSON: {error}; save the model again") from None
    names = config.get("id2label") or {str(i): f"LABEL_{i}" for i in range(config.get("num_labels", 2))}
    labels = tuple(names[k] for k in sorted(names, key=int))
    size = config.get("image_size")
    # Vision transformers embed patch positions and need exactly this size; convolutional nets take any.
    fixed = size if isinstance(size, int) and "patch_size" in config and "hidden_sizes" not in config else None
    return Checkpoint(folder, len(labels), labels, Preprocess.load(folder, int(config.get("num_channels", 3)), fixed))


def _resolve(path: str, key: str) -> Path:
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        siblings = [str(p) for p in folder.parent.glob("*/")] if folder.parent.is_dir() else []
        raise UserError(f"{key}={path}: no such folder; {nearest(path, siblings)}")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # the hub's client raises many types; each means that the model cannot be had
        raise UserError(
            f"{key}={path}: no such folder, and the Hugging Face hub did not give it ({type(error).__name__}); "
            "give a folder, or an id that can be reached"
        ) from None


def check_labels(checkpoint: Checkpoint, class_names: list[str], key: str = "model.path") -> None:
    """Refuses a model whose label space is not the data's. Raises :class:`UserError`."""
    where = f"{key}={checkpoint.folder}"
    if checkpoint.num_labels != len(class_names):
        raise UserError(
            f"{where} has {checkpoint.num_labels} labels, but the data has {len(class_names)} classes; "
            "give a model that was trained on these classes"
        )
    if sorted(checkpoint.labels) == sorted(class_names) and list(checkpoint.labels) != class_names:
        moved = next(i for i, (a, b) in enumerate(zip(checkpoint.labels, class_names, strict=True)) if a != b)
        raise UserError(
            f"{where} orders the classes otherwise than the data: label {moved} is "
            f"{checkpoint.labels[moved]!r} in the model and {class_names[moved]!r} in the data; "
            "give data.class_names_file in the model's order, or mend id2label in its config.json if that is wrong"
        )


def export(
    model: PreTrainedModel, state: dict[str, Any] | None, preprocess: Preprocess, folder: Path, origin: Path | None
) -> None:
    """Writes config, safetensors weights and preprocessing; the origin's own preprocessor file is kept as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, state_dict=state)
    if origin is not None and (origin / PREPROCESSOR_FILE).is_file():
        shutil.copyfile(origin / PREPROCESSOR_FILE, folder / PREPROCESSOR_FILE)
    else:
        preprocess.save(folder)
