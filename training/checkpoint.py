"""Writing of pocket checkpoints that plain transformers loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast


def save(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, image_processor: Any
) -> None:
    """Write a checkpoint to ``folder``.

    The files store weights in float16; the configuration asks for float32 computation. The tied
    ``lm_head.weight`` is left out.
    """
    half = {
        name: tensor.to(torch.float16)
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    model.save_pretrained(folder, state_dict=half)
    tokenizer.save_pretrained(folder)
    image_processor.save_pretrained(folder)
