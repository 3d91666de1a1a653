"""The pocket SmolVLM checkpoint: the stock architecture, small enough to ship.

A 192-pixel tile is 12 × 12 patches of 16 pixels. A pixel shuffle of 4 makes 3 × 3 image tokens of
them. Every image token therefore covers one cell of a scene's grid.
"""

from __future__ import annotations

from pathlib import Path

from transformers import (
    LlamaConfig,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from training.checkpoint import save
from training.json_answers import json_corpus
from training.tokenizer import build_tokenizer

TILE = 192
"""Side of a tile, in pixels."""
MAX_TILES_PER_SIDE = 2
SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<end_of_utterance>",
    "<fake_token_around_image>",
    "<image>",
    "<global-img>",
    *(
        f"<row_{row + 1}_col_{col + 1}>"
        for row in range(MAX_TILES_PER_SIDE)
        for col in range(MAX_TILES_PER_SIDE)
    ),
]
CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}{{ '<image>' }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
VOCAB_SIZE = 1024


def pocket_tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(
        SPECIAL_TOKENS,
        VOCAB_SIZE,
        corpus=json_corpus(),
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        pad_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
    )


def pocket_config(tokenizer: PreTrainedTokenizerFast) -> SmolVLMConfig:
    token = tokenizer.convert_tokens_to_ids
    return SmolVLMConfig(
        image_token_id=token("<image>"),
        scale_factor=4,
        tie_word_embeddings=True,
        dtype="float32",
        vision_config=SmolVLMVisionConfig(
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=TILE,
            patch_size=16,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            bos_token_id=token("<|im_start|>"),
            eos_token_id=token("<end_of_utterance>"),
            pad_token_id=token("<|im_end|>"),
        ),
    )


def pocket_image_processor() -> SmolVLMImageProcessorPil:
    return SmolVLMImageProcessorPil(
        size={"longest_edge": TILE * MAX_TILES_PER_SIDE},
        max_image_size={"longest_edge": TILE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def save_pocket(
    folder: Path, model: SmolVLMForConditionalGeneration, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Write the checkpoint to ``folder``."""
    save(folder, model, tokenizer, pocket_image_processor())
