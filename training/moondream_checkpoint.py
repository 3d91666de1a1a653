"""The pocket Moondream checkpoint: the original architecture, small enough to ship.

A picture is 36 image tokens, from the whole picture and up to four local crops. A crop has 96
pixels a side, in patches of 16.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from models.moondream.config import (
    MoondreamConfig,
    RegionConfig,
    Template,
    TextConfig,
    TokenizerConfig,
    VisionConfig,
)
from training.json_answers import json_corpus
from training.tokenizer import build_tokenizer

SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|task|>",
    "<|input|>",
    "<|answer|>",
    "<|thinking|>",
    "<|coord|>",
    "<|size|>",
    "<|start_ground_points|>",
    "<|start_ground_text|>",
    "<|end_ground|>",
]
"""The order is the original tokenizer's, so the ids are the same."""
TASK, INPUT, ANSWER = 1, 2, 3
VOCAB_SIZE = 1024
WORDS = ("caption", "query", "detect", "point", "short", "normal", "long")
"""Words of the prompt templates. Each is one token."""


def pocket_tokenizer() -> PreTrainedTokenizerFast:
    corpus = [f" {word} {word}" for word in WORDS] * 100
    corpus += ["system: user: assistant: \n"] * 100
    corpus += [
        f" {word}. What is this? What color is this?"
        for word in ("a red circle", "an orange square")
    ] * 60
    corpus += json_corpus()
    return build_tokenizer(SPECIAL_TOKENS, VOCAB_SIZE, corpus=corpus, eos_token="<|endoftext|>")


def pocket_config(tokenizer: PreTrainedTokenizerFast) -> MoondreamConfig:
    word_ids = {word: tokenizer.encode(f" {word}", add_special_tokens=False)[0] for word in WORDS}

    def template(name: str) -> Template:
        return Template((TASK, word_ids[name], INPUT), (ANSWER,))

    return MoondreamConfig(
        text=TextConfig(
            dim=128, ff_dim=384, n_layers=5, vocab_size=len(tokenizer), n_heads=4, n_kv_heads=4
        ),
        vision=VisionConfig(
            enc_dim=128,
            enc_patch_size=16,
            enc_n_layers=4,
            enc_ff_dim=384,
            enc_n_heads=4,
            proj_out_dim=128,
            crop_size=96,
            max_crops=4,
            overlap_margin=1,
            proj_inner_dim=256,
        ),
        region=RegionConfig(
            dim=128,
            coord_feat_dim=32,
            coord_out_dim=256,
            size_feat_dim=32,
            size_out_dim=256,
            inner_dim=192,
        ),
        tokenizer=TokenizerConfig(
            caption={
                length: (TASK, word_ids["caption"], INPUT, word_ids[length], ANSWER)
                for length in WORDS[-3:]
            },
            query=template("query"),
            detect=template("detect"),
            point=template("point"),
        ),
    )


def save_pocket(
    folder: Path,
    config: MoondreamConfig,
    tensors: Mapping[str, Tensor],
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Write the checkpoint to ``folder``.

    Weights are stored in float16; the model computes in float32.
    """
    folder.mkdir(parents=True, exist_ok=True)
    half = {
        f"model.{name}": tensor.to(torch.float16).contiguous().cpu()
        for name, tensor in tensors.items()
    }
    save_file(half, folder / "model.safetensors", {"format": "pt"})
    contents = {
        "architectures": ["HfMoondream"],
        "model_type": "moondream1",
        "config": config.to_dict(),
    }
    (folder / "config.json").write_text(json.dumps(contents, indent=2) + "\n")
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
