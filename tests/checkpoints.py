"""Checkpoints with random weights, for what does not depend on the values."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import SmolVLMForConditionalGeneration

from models.pocket.smolvlm_checkpoint import pocket_config, pocket_tokenizer, save_pocket


def random_smolvlm(folder: Path, seed: int = 0, scale: float = 1.0) -> Path:
    """A pocket-sized SmolVLM that has learned nothing; it rarely ends an answer by itself.

    ``scale`` widens the initial weights, so that the answers vary.
    """
    torch.manual_seed(seed)
    tokenizer = pocket_tokenizer()
    model = SmolVLMForConditionalGeneration(pocket_config(tokenizer))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
    save_pocket(folder, model, tokenizer)
    return folder
