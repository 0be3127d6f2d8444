"""What a model folder must hold, and what some families need beyond the base install; told before anything loads."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

from megu_dist.errors import UserError

EXTRA = "pip install 'megu-dist[oracle]'"
# Families whose processors need a package beyond the base install; their own error does not name it.
NEEDS = {
    "torchvision": (
        "cohere2_vision", "ernie4_5_vl_moe", "gemma4", "glm46v", "glm4v", "glm4v_moe", "internvl", "kimi_k25",
        "lfm2_vl", "llama4", "llava_next_video", "llava_onevision", "minicpmv4_6", "molmo2", "perception_lm",
        "qwen2_5_vl", "qwen2_vl", "qwen3_5", "qwen3_5_moe", "qwen3_vl", "qwen3_vl_moe", "smolvlm", "video_llama_3",
        "video_llava",
    ),
    "num2words": ("smolvlm",),
}  # fmt: skip


def model_folder(path: str) -> Path | None:
    """The folder that ``oracle.path`` names, or None for a hub id.

    Raises :class:`UserError` for a folder that is not there, holds no safetensors model, or needs a missing package.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        if path.startswith((".", "/", "~")) or path.count("/") > 1:
            raise UserError(f"oracle.path={path}: no such folder; give a model folder, or a hub id (ORGANISATION/NAME)")
        return None
    try:
        config = json.loads((folder / "config.json").read_text())
        kind = str(config["model_type"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"oracle.path={path}: no config.json with a model_type there, so it is not a model folder; give "
            "one that save_pretrained wrote"
        ) from None
    missing = [name for name, kinds in NEEDS.items() if kind in kinds and importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"oracle.path={path}: models of type {kind} need {' and '.join(missing)}: {EXTRA}")
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"oracle.path={path}: no *.safetensors there, and other weights are not loaded; save them with "
            "save_pretrained"
        )
    return folder
