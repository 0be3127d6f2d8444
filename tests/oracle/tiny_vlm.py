"""Tiny multimodal models of real families, built from configs with a byte-level tokenizer; nothing is downloaded."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    AyaVisionProcessor,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPVisionConfig,
    GotOcr2ImageProcessorPil,
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

from megu_dist.oracle.backends.mllm import MllmOracle
from megu_dist.oracle.base import Pair

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


def tokenizer(
    extra: tuple[str, ...] = (), texts: Sequence[str] = (), spaced_digits: bool = False, ends: str = ""
) -> PreTrainedTokenizerFast:
    """One token per byte, and per word of ``texts``; ``spaced_digits``: tokens for a digit with a space before it, too.

    ``ends``: what the tokenizer itself puts around a text, as in "<s> $A </s>".
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", str(digit)) for digit in range(10)] if spaced_digits else []
    vocabulary = {c: i for i, c in enumerate([*alphabet, *("".join(pair) for pair in merges)])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    by_word, alone = pre_tokenizers.ByteLevel(add_prefix_space=False), pre_tokenizers.Digits(individual_digits=True)
    core.pre_tokenizer = by_word if spaced_digits else pre_tokenizers.Sequence([alone, by_word])
    core.decoder = decoders.ByteLevel()
    if texts:
        core.train_from_iterator(
            texts, trainers.BpeTrainer(vocab_size=2000, initial_alphabet=alphabet, show_progress=False)
        )
    words = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>", "<turn>", "<end>", *extra],
    )
    if ends:
        marks = [("<s>", words.bos_token_id), ("</s>", words.eos_token_id)]
        words._tokenizer.post_processor = processors.TemplateProcessing(single=ends, special_tokens=marks)
    return words


def llava(
    folder: Path,
    template: str | None = IN_PLACE,
    seed: int = 0,
    hidden: int = 16,
    layers: int = 2,
    spread: float = 0.02,
    words: PreTrainedTokenizerFast | None = None,
) -> Path:
    """LLaVA with random weights (standard deviation ``spread``) and its processor."""
    words = words or tokenizer()
    pictures = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    options: dict[str, Any] = {"patch_size": PATCH, "vision_feature_select_strategy": "default"}
    processor = LlavaProcessor(
        pictures, words, num_additional_image_tokens=1, image_token="<image>", chat_template=template, **options
    )
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=2, num_attention_heads=2,
        image_size=SIDE, patch_size=PATCH, initializer_range=spread,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=len(words), hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=2048, initializer_range=spread,
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


def idefics3(folder: Path, seed: int = 0, hidden: int = 16, spread: float = 0.02, texts: Sequence[str] = ()) -> Path:
    """Idefics3 with random weights and its processor."""
    words = tokenizer(("<fake_token_around_image>", "<end_of_utterance>", "<global-img>", "<row_1_col_1>"), texts)
    pictures = Idefics3ImageProcessorPil(
        do_image_splitting=False, size={"longest_edge": SIDE}, max_image_size={"longest_edge": SIDE}
    )
    processor = Idefics3Processor(pictures, words, image_seq_len=1, chat_template=IN_PLACE)
    torch.manual_seed(seed)
    model = Idefics3ForConditionalGeneration(
        Idefics3Config(
            vision_config={"hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": 2,
                           "num_attention_heads": 2, "image_size": SIDE, "patch_size": PATCH,
                           "initializer_range": spread},
            text_config={"model_type": "llama", "vocab_size": len(words), "hidden_size": hidden,
                         "intermediate_size": 4 * hidden, "num_hidden_layers": 2, "num_attention_heads": 2,
                         "num_key_value_heads": 2, "max_position_embeddings": 2048,
                         "pad_token_id": words.pad_token_id, "initializer_range": spread},
            image_token_id=words.convert_tokens_to_ids("<image>"),
            scale_factor=2,
        )
    )  # fmt: skip
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def aya_vision(folder: Path, seed: int = 0, spread: float = 0.02) -> Path:
    """Aya Vision with random weights and its processor, which pads on the left unless told otherwise."""
    marks = ("<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>", "TILE", "TILE_GLOBAL")
    words = tokenizer(marks)
    pictures = GotOcr2ImageProcessorPil(size={"height": SIDE, "width": SIDE})
    processor = AyaVisionProcessor(
        pictures, words, patch_size=PATCH // 2, img_size=SIDE, downsample_factor=2, chat_template=IN_PLACE
    )
    torch.manual_seed(seed)
    vision = {"model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
              "num_attention_heads": 2, "image_size": SIDE, "patch_size": PATCH // 2,
              "vision_use_head": False, "initializer_range": spread}  # fmt: skip
    text = {"model_type": "cohere2", "vocab_size": len(words), "hidden_size": 16, "intermediate_size": 64,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "sliding_window": 2048,
            "max_position_embeddings": 2048, "pad_token_id": words.pad_token_id, "bos_token_id": words.bos_token_id,
            "eos_token_id": words.eos_token_id, "initializer_range": spread}  # fmt: skip
    patch = words.convert_tokens_to_ids("<|IMG_PATCH|>")
    model = AyaVisionForConditionalGeneration(
        AyaVisionConfig(vision_config=vision, text_config=text, downsample_factor=2, image_token_index=patch)
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def clip(folder: Path, seed: int = 0, spread: float = 0.02) -> Path:
    """CLIP with random weights and its processor."""
    words = tokenizer(ends="<s> $A </s>")  # the model pools at </s>
    pictures = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    torch.manual_seed(seed)
    text = CLIPTextConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=77, eos_token_id=words.eos_token_id, bos_token_id=words.bos_token_id,
        pad_token_id=words.pad_token_id, initializer_range=spread,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE,
        patch_size=PATCH, initializer_range=spread,
    )  # fmt: skip
    CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)).save_pretrained(
        folder
    )
    words.model_max_length = 77
    CLIPProcessor(pictures, words).save_pretrained(folder)
    return folder


def favour(oracle: MllmOracle, tokens: list[int], amount: float, pairs: list[Pair]) -> None:
    """Adds ``amount`` to the logits of ``tokens`` for every question, as an output bias would (these models have none).

    The direction that all last hidden states of ``pairs`` share is found by least squares.
    """
    seen: list[torch.Tensor] = []
    hook = oracle.model.lm_head.register_forward_pre_hook(lambda _, given: seen.append(given[0][0, -1].float()))
    for pair in pairs:
        oracle._forward([pair], [oracle._render(pair)])
    hook.remove()
    hidden = torch.stack(seen)
    shared = torch.linalg.lstsq(hidden, torch.ones(len(hidden), 1), driver="gelsd").solution[:, 0]
    with torch.no_grad():
        oracle.model.lm_head.weight[tokens] += amount * shared.to(oracle.model.dtype)
    oracle.priors.clear()
    oracle.prefixes.clear()


def picture(value: int, seed: int = 0) -> bytes:
    """PNG of gray ``value`` with a little noise."""
    noise = np.random.default_rng(seed).integers(-3, 4, (SIDE, SIDE, 3))
    sink = io.BytesIO()
    Image.fromarray((value + noise).clip(0, 255).astype(np.uint8)).save(sink, "PNG")
    return sink.getvalue()
