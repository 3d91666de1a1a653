"""How pocket checkpoints are written, whatever the family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast


def save(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, image_processor: Any
) -> None:
    """Files that plain transformers loads; weights are kept in float16 and computed in float32."""
    half = {
        name: tensor.to(torch.float16)
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    model.save_pretrained(folder, state_dict=half)
    tokenizer.save_pretrained(folder)
    image_processor.save_pretrained(folder)
