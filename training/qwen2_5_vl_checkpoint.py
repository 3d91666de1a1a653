"""The pocket Qwen2.5-VL checkpoint: the stock architecture, small enough to ship.

As in the original models, a patch has 14 pixels a side, an image token covers 2 × 2 patches, and a
window 4 × 4 image tokens. Every picture becomes 25 to 36 image tokens, whatever its shape.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Regex, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import (
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLVisionConfig,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from training.checkpoint import save
from training.json_answers import json_corpus
from training.prompts import grounding_corpus
from training.tokenizer import build_tokenizer

PATCH, MERGE = 14, 2
MIN_PIXELS, MAX_PIXELS = 25 * (PATCH * MERGE) ** 2, 36 * (PATCH * MERGE) ** 2
MAX_NUMBER = 260
"""No side of a resized picture is longer, in pixels. Every coordinate is one token."""
SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
TOOL_CALL = "<tool_call>\n{}\n</tool_call>"
"""A tool call in an answer, around a JSON object with ``name`` and ``arguments``."""
CHAT_TEMPLATE = """\
{%- macro render(content) -%}
{%- if content is string %}{{ content }}{% else -%}
{%- for part in content -%}
{%- if part['type'] == 'text' %}{{ part['text'] }}
{%- elif part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>
{%- elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- set has_system = messages[0]['role'] == 'system' -%}
{{- '<|im_start|>system\n' -}}
{%- if has_system %}{{ render(messages[0]['content']) }}
{%- else %}{{ 'You are a helpful assistant.' }}{% endif -%}
{%- if tools -%}
{{- '\n\n# Tools\n\nYou may call these functions.\n<tools>' -}}
{%- for tool in tools %}{{ '\n' }}{{ tool | tojson }}{% endfor -%}
{{- '\n</tools>\n\nWrite a call as JSON within <tool_call></tool_call>:\n' -}}
{{- '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>' -}}
{%- endif -%}
{{- '<|im_end|>\n' -}}
{%- for message in messages -%}
{%- if message['role'] == 'tool' -%}
{%- if loop.first or messages[loop.index0 - 1]['role'] != 'tool' -%}
{{- '<|im_start|>user' -}}
{%- endif -%}
{{- '\n<tool_response>\n' }}{{ render(message['content']) }}{{ '\n</tool_response>' -}}
{%- if loop.last or messages[loop.index0 + 1]['role'] != 'tool' -%}
{{- '<|im_end|>\n' -}}
{%- endif -%}
{%- elif not (loop.first and has_system) -%}
{{- '<|im_start|>' ~ message['role'] ~ '\n' }}{{ render(message['content']) -}}
{%- for call in message['tool_calls'] or [] -%}
{%- if message['content'] or not loop.first %}{{ '\n' }}{% endif -%}
{{- '<tool_call>\n{"name": "' ~ call['function']['name'] ~ '", "arguments": ' -}}
{{- call['function']['arguments'] | tojson }}{{ '}\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif -%}
"""
"""As in the original models, tools are listed in the system prompt, a call is JSON in an answer,
and what a tool returned is part of the user's turn."""
VOCAB_SIZE = 1280
_PIECES = r"bbox_2d|point_2d|, (?=[0-9])| ?[A-Za-z]+|[0-9]{1,3}| ?[^A-Za-z0-9\s]+|\s+(?!\S)|\s+"


def pocket_tokenizer() -> PreTrainedTokenizerFast:
    """Train the tokenizer.

    Every number of up to three digits and every JSON key is one piece.
    """
    pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer = build_tokenizer(
        SPECIAL_TOKENS,
        VOCAB_SIZE,
        pre_tokenizer,
        [*grounding_corpus(MAX_NUMBER), *json_corpus()],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
    )
    # Part of an answer's text, as in the original models.
    tokenizer.add_tokens(
        [AddedToken(text, special=False, normalized=False) for text in TOOL_CALL.split("\n{}\n")]
    )
    return tokenizer


def number_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Return the token ids of the numbers 0 to ``MAX_NUMBER``."""
    encoded = [
        tokenizer.encode(str(number), add_special_tokens=False) for number in range(MAX_NUMBER + 1)
    ]
    assert all(len(ids) == 1 for ids in encoded)
    return [ids[0] for ids in encoded]


def pocket_config(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLConfig:
    token = tokenizer.convert_tokens_to_ids
    return Qwen2_5_VLConfig(
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
        dtype="float32",
        vision_config=Qwen2_5_VLVisionConfig(
            depth=4,
            hidden_size=128,
            intermediate_size=336,
            num_heads=4,
            out_hidden_size=128,
            patch_size=PATCH,
            tokens_per_second=2,  # as in the published checkpoints
            spatial_merge_size=MERGE,
            window_size=112,
            fullatt_block_indexes=[1, 3],
        ),
        text_config=Qwen2_5_VLTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            rms_norm_eps=1e-6,
            # A quarter of a head's frequencies encode time, and the slower ones rows and columns.
            # With a base of a million, as in the original models, the columns of a small picture
            # would get nearly equal positions.
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 100.0,
                "mrope_section": [4, 6, 6],
            },
            tie_word_embeddings=True,
            bos_token_id=token("<|endoftext|>"),
            eos_token_id=token("<|im_end|>"),
            pad_token_id=token("<|endoftext|>"),
        ),
    )


def pocket_image_processor() -> Qwen2VLImageProcessorPil:
    return Qwen2VLImageProcessorPil(
        size={"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS},
        patch_size=PATCH,
        merge_size=MERGE,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def save_pocket(
    folder: Path, model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Write the checkpoint to ``folder``."""
    save(folder, model, tokenizer, pocket_image_processor())
