"""Checkpoints with random weights, for what does not depend on the values."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Qwen2_5_VLForConditionalGeneration,
    SmolVLMForConditionalGeneration,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from models.pocket import qwen2_5_vl_checkpoint
from models.pocket.smolvlm_checkpoint import pocket_config, pocket_image_processor, pocket_tokenizer, save_pocket


def random_smolvlm(folder: Path, seed: int = 0, scale: float = 1.0) -> Path:
    """A pocket-sized SmolVLM that has learned nothing; it rarely ends an answer by itself.

    ``scale`` widens the initial weights, so that the answers vary.
    """
    torch.manual_seed(seed)
    tokenizer = pocket_tokenizer()
    model = SmolVLMForConditionalGeneration(pocket_config(tokenizer))
    _widen(model, scale)
    save_pocket(folder, model, tokenizer)
    return folder


def random_first_generation(folder: Path) -> Path:
    """The same as the first SmolVLM checkpoints are published: as transformers' Idefics3."""
    tokenizer = pocket_tokenizer()
    config = pocket_config(tokenizer)
    model = Idefics3ForConditionalGeneration(
        Idefics3Config(
            image_token_id=config.image_token_id,
            scale_factor=config.scale_factor,
            tie_word_embeddings=True,
            vision_config={**config.vision_config.to_dict(), "model_type": "idefics3_vision"},
            text_config=config.text_config.to_dict(),
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    stock = pocket_image_processor()
    Idefics3ImageProcessorPil(
        size={"longest_edge": stock.size["longest_edge"]},
        max_image_size={"longest_edge": stock.max_image_size["longest_edge"]},
        image_mean=stock.image_mean,
        image_std=stock.image_std,
    ).save_pretrained(folder)
    return folder


def random_qwen2_5_vl(folder: Path, seed: int = 0, scale: float = 1.0) -> Path:
    """A pocket-sized Qwen2.5-VL that has learned nothing; see :func:`random_smolvlm`."""
    torch.manual_seed(seed)
    tokenizer = qwen2_5_vl_checkpoint.pocket_tokenizer()
    model = Qwen2_5_VLForConditionalGeneration(qwen2_5_vl_checkpoint.pocket_config(tokenizer))
    _widen(model, scale)
    qwen2_5_vl_checkpoint.save_pocket(folder, model, tokenizer)
    return folder


def _widen(model: torch.nn.Module, scale: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
