"""Plain ``generate`` of transformers, which engines are measured against. Needs no Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from raylens.engine.model import Prompt


@dataclass(frozen=True)
class Question:
    """A prompt, and how many tokens its answer takes."""

    prompt: Prompt
    tokens: int


class Generate:
    """Greedy ``generate`` of transformers; short prompts are padded on the left."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, questions: Sequence[Question]) -> None:
        """Answers all in one batch, which goes on until the longest answer is complete."""
        tokens = max(question.tokens for question in questions)
        self.answer(self.inputs([question.prompt for question in questions]), tokens)

    def answer(self, given: dict[str, torch.Tensor], tokens: int) -> None:
        """Says exactly so many tokens to each of the prompts in ``given``."""
        with torch.inference_mode():
            ids = self._model.generate(
                **given, do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens
            )
        made = ids.shape[1] - given["input_ids"].shape[1]
        assert made == tokens, f"{made} tokens instead of {tokens}"

    def inputs(self, prompts: Sequence[Prompt]) -> dict[str, torch.Tensor]:
        """What the model reads, on its device. Of SmolVLM's prompts, all have as many tiles."""
        config, device, dtype = self._model.config, self._model.device, self._model.dtype
        width = max(len(prompt.token_ids) for prompt in prompts)
        pad = config.text_config.pad_token_id
        ids = torch.tensor(
            [(pad,) * (width - len(prompt.token_ids)) + prompt.token_ids for prompt in prompts]
        )
        lengths = torch.tensor([len(prompt.token_ids) for prompt in prompts])
        mask = (torch.arange(width) >= width - lengths[:, None]).long()
        given = {"input_ids": ids, "attention_mask": mask}
        if config.model_type == "qwen2_5_vl":
            shown = [picture.data for prompt in prompts for picture in prompt.pictures]
            grids = [
                [patches.grid.frames, patches.grid.rows, patches.grid.columns] for patches in shown
            ]
            given["mm_token_type_ids"] = (ids == config.image_token_id).int()
            given["image_grid_thw"] = torch.tensor(grids)
            pixels = np.concatenate([patches.values for patches in shown])
        else:
            pixels = np.stack([[tile.data for tile in prompt.pictures] for prompt in prompts])
        given["pixel_values"] = (torch.from_numpy(pixels) / 127.5 - 1).to(dtype)
        return {name: tensor.to(device) for name, tensor in given.items()}
