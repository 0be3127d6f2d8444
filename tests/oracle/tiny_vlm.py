"""Tiny multimodal models of real families, built from configs with a byte-level tokenizer; nothing is downloaded."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

SIDE, PATCH = 32, 16
# Pictures where they stand in the message, a turn marker at both ends.
IN_PLACE = (
    "{% for m in messages %}<turn>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)
# All pictures first, as LLaVA 1.5 does.
PICTURES_FIRST = (
    "{% for m in messages %}<turn>{{ m['role'] }}\n"
    "{% for c in m['content'] if c['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)


def tokenizer(extra: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """One token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>", "<turn>", "<end>", *extra],
    )


def llava(folder: Path, template: str | None = IN_PLACE, seed: int = 0, hidden: int = 16, layers: int = 2) -> Path:
    """LLaVA with random weights and its processor."""
    words = tokenizer()
    pictures = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    options: dict[str, Any] = {"patch_size": PATCH, "vision_feature_select_strategy": "default"}
    processor = LlavaProcessor(
        pictures, words, num_additional_image_tokens=1, image_token="<image>", chat_template=template, **options
    )
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=2, num_attention_heads=2,
        image_size=SIDE, patch_size=PATCH,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=len(words), hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=2048,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=words.convert_tokens_to_ids("<image>"),
            vision_feature_layer=-1,
            vision_feature_select_strategy="default",
            image_seq_length=4,
        )
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def idefics3(folder: Path, seed: int = 0) -> Path:
    """Idefics3 with random weights and its processor."""
    words = tokenizer(("<fake_token_around_image>", "<end_of_utterance>", "<global-img>", "<row_1_col_1>"))
    pictures = Idefics3ImageProcessorPil(
        do_image_splitting=False, size={"longest_edge": SIDE}, max_image_size={"longest_edge": SIDE}
    )
    processor = Idefics3Processor(pictures, words, image_seq_len=1, chat_template=IN_PLACE)
    torch.manual_seed(seed)
    model = Idefics3ForConditionalGeneration(
        Idefics3Config(
            vision_config={"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
                           "num_attention_heads": 2, "image_size": SIDE, "patch_size": PATCH},
            text_config={"model_type": "llama", "vocab_size": len(words), "hidden_size": 16, "intermediate_size": 64,
                         "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
                         "max_position_embeddings": 2048, "pad_token_id": words.pad_token_id},
            image_token_id=words.convert_tokens_to_ids("<image>"),
            scale_factor=2,
        )
    )  # fmt: skip
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def clip(folder: Path, seed: int = 0) -> Path:
    """CLIP with random weights and its processor."""
    words = tokenizer()
    pictures = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    torch.manual_seed(seed)
    text = CLIPTextConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=77, eos_token_id=words.eos_token_id, bos_token_id=words.bos_token_id,
        pad_token_id=words.pad_token_id,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE,
        patch_size=PATCH,
    )  # fmt: skip
    CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)).save_pretrained(
        folder
    )
    words.model_max_length = 77
    CLIPProcessor(pictures, words).save_pretrained(folder)
    return folder


def picture(value: int, seed: int = 0) -> bytes:
    """PNG of gray ``value`` with a little noise."""
    noise = np.random.default_rng(seed).integers(-3, 4, (SIDE, SIDE, 3))
    sink = io.BytesIO()
    Image.fromarray((value + noise).clip(0, 255).astype(np.uint8)).save(sink, "PNG")
    return sink.getvalue()
