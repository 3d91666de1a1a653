"""transformers' plain ``generate``, the baseline of the engine benchmarks. Needs no Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from raylens.engine.model import Prompt


@dataclass(frozen=True)
class Request:
    """A prompt and the exact number of tokens to generate for it."""

    prompt: Prompt
    tokens: int


class Generate:
    """transformers' greedy ``generate``. Shorter prompts of a batch are padded on the left."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, requests: Sequence[Request]) -> None:
        """Answer all requests in one batch, which runs until the longest answer is complete."""
        tokens = max(request.tokens for request in requests)
        self.answer(self.inputs([request.prompt for request in requests]), tokens)

    def answer(self, inputs: dict[str, torch.Tensor], tokens: int) -> None:
        """Generate exactly ``tokens`` tokens for each prompt in ``inputs``."""
        with torch.inference_mode():
            ids = self._model.generate(
                **inputs, do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens
            )
        generated = ids.shape[1] - inputs["input_ids"].shape[1]
        assert generated == tokens, f"{generated} tokens instead of {tokens}"

    def inputs(self, prompts: Sequence[Prompt]) -> dict[str, torch.Tensor]:
        """Return the model's inputs on its device.

        SmolVLM's prompts must all have the same number of tiles.
        """
        model = self._model
        config = model.config
        width = max(len(prompt.token_ids) for prompt in prompts)
        pad = config.text_config.pad_token_id
        ids = torch.tensor(
            [(pad,) * (width - len(prompt.token_ids)) + prompt.token_ids for prompt in prompts]
        )
        lengths = torch.tensor([len(prompt.token_ids) for prompt in prompts])
        mask = (torch.arange(width) >= width - lengths[:, None]).long()
        inputs = {"input_ids": ids, "attention_mask": mask}
        if config.model_type == "qwen2_5_vl":
            pictures = [picture.data for prompt in prompts for picture in prompt.pictures]
            grids = [
                [patches.grid.frames, patches.grid.rows, patches.grid.columns]
                for patches in pictures
            ]
            inputs["mm_token_type_ids"] = (ids == config.image_token_id).int()
            inputs["image_grid_thw"] = torch.tensor(grids)
            pixels = np.concatenate([patches.values for patches in pictures])
        else:
            pixels = np.stack([[tile.data for tile in prompt.pictures] for prompt in prompts])
        inputs["pixel_values"] = (torch.from_numpy(pixels) / 127.5 - 1).to(model.dtype)
        return {name: tensor.to(model.device) for name, tensor in inputs.items()}
