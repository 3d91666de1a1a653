"""SmolVLM and SmolVLM2 (256M, 500M, 2.2B): prompts, picture tiles, and batched prefill and decode.

Weights, tokenizer and image processor are those of transformers; the prompt's layout follows
``processing_smolvlm.py`` there: a picture is its tiles row by row, each behind ``<row_r_col_c>``, then a global view.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoTokenizer,
    DynamicCache,
    GenerationConfig,
    PreTrainedTokenizerBase,
)
from transformers.models.smolvlm.processing_smolvlm import DEFAULT_CHAT_TEMPLATE

from raylens.engine.model import Pixels, Prompt
from raylens.errors import InvalidRequest, UnsupportedTask
from raylens.types import (
    Caption,
    Chat,
    Detail,
    ImagePart,
    Length,
    Message,
    Query,
    Role,
    Task,
    TextPart,
    VisionRequest,
)

TASKS = frozenset({Caption.name, Query.name, Chat.name})
CAPTION_PROMPTS = {
    Length.SHORT: "Caption this image in one short sentence.",
    Length.NORMAL: "Describe this image.",
    Length.LONG: "Describe this image in detail.",
}
Grid = tuple[int, int]
"""Rows and columns of tiles; (1, 1) is a single view."""


def load(
    checkpoint: str,
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    max_tiles_per_step: int = 16,
) -> SmolVLM:
    """Loads a checkpoint by hub id or from a folder. Raises ``OSError`` where it can't be found."""
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, revision=revision, dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, revision=revision)
    image_processor = AutoImageProcessor.from_pretrained(checkpoint, revision=revision, backend="pil")
    return SmolVLM(model.to(device).eval(), tokenizer, image_processor, max_tiles_per_step)


def tile_grid(width: int, height: int, detail: Detail, tile: int, longest_edge: int) -> Grid:
    """How many tiles a picture of this size is cut into at ``low`` (one) and ``auto``.

    ``auto`` takes as many as the picture fills without being enlarged, within ``longest_edge``. ``high`` is the
    checkpoint's own policy, which enlarges every picture to ``longest_edge``; its image processor knows it.
    """
    if detail is Detail.LOW:
        return 1, 1
    scale = min(1.0, longest_edge / max(width, height))
    return max(1, int(height * scale) // tile), max(1, int(width * scale) // tile)


@dataclass
class Cache:
    """Keys and values of the running rows; ``mask`` is (rows, positions), 1 where a position holds a token."""

    keys_values: DynamicCache
    mask: Tensor


class SmolVLM:
    """A loaded checkpoint; implements :class:`raylens.engine.model.Model`."""

    tasks = TASKS

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: Any,
        max_tiles_per_step: int = 16,
    ) -> None:
        self._model = model
        self._text_model = model.model.text_model
        self._chat = tokenizer
        self._image_processor = image_processor
        self._max_tiles_per_step = max_tiles_per_step
        config = model.config
        side = config.vision_config.image_size // config.vision_config.patch_size
        self._tokens_per_tile = (side // config.scale_factor) ** 2
        self._tile = int(image_processor.max_image_size["longest_edge"])
        self._longest_edge = int(image_processor.size["longest_edge"])
        self._image_id = int(config.image_token_id)
        self._pad_id = int(config.text_config.pad_token_id or 0)
        self._control_tokens = tuple(tokenizer.get_added_vocab())
        self.tokenizer: Tokenizer = tokenizer._tokenizer
        self.device = str(model.device)
        self.eos_ids = _eos_ids(tokenizer, model.generation_config)
        self.max_length = int(config.text_config.max_position_embeddings)

    def prepare(self, request: VisionRequest, pictures: Sequence[Pixels]) -> Prompt:
        """Implements :meth:`raylens.engine.model.Model.prepare`."""
        messages = self._messages(request.task, len(pictures))
        details = [part.detail for message in messages for part in message.parts if isinstance(part, ImagePart)]
        indices = [part.index for message in messages for part in message.parts if isinstance(part, ImagePart)]
        cut = [self._cut(pictures[index], detail) for index, detail in zip(indices, details, strict=True)]
        token_ids = self._token_ids(messages, [grid for _, grid in cut])
        room = self.max_length - len(token_ids)
        if room < 1:
            raise InvalidRequest(
                f"messages: the prompt takes {len(token_ids)} tokens, pictures included;"
                f" the model's context is {self.max_length}",
                "messages",
                self.max_length,
                len(token_ids),
            )
        return Prompt(token_ids, np.concatenate([tiles for tiles, _ in cut]) if cut else None)

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Prompt], outputs: Sequence[Sequence[int]]) -> tuple[Tensor, Cache]:
        """Implements :meth:`raylens.engine.model.Model.prefill`; shorter rows are padded on the left."""
        rows = [[*prompt.token_ids, *output] for prompt, output in zip(prompts, outputs, strict=True)]
        length = max(map(len, rows))
        ids = torch.tensor([[self._pad_id] * (length - len(row)) + row for row in rows], device=self.device)
        mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device=self.device)
        embeds = self._text_model.get_input_embeddings()(ids)
        tiles = [prompt.tiles for prompt in prompts if prompt.tiles is not None]
        if tiles:
            # Only a prompt's image tokens take a picture's features: one that the model has generated stays a token.
            answered = torch.tensor([length - len(output) for output in outputs], device=self.device)
            asked = torch.arange(length, device=self.device) < answered[:, None]
            places = (ids == self._image_id) & asked
            embeds = embeds.masked_scatter(places[..., None], self._encode(np.concatenate(tiles)).to(embeds.dtype))
        cache = Cache(DynamicCache(config=self._model.config), mask)
        return self._forward(embeds, cache), cache

    @torch.inference_mode()
    def decode(self, token_ids: Sequence[int], cache: Cache) -> Tensor:
        """Implements :meth:`raylens.engine.model.Model.decode`."""
        ids = torch.tensor(token_ids, device=self.device)[:, None]
        cache.mask = torch.cat([cache.mask, cache.mask.new_ones(len(ids), 1)], dim=1)
        return self._forward(self._text_model.get_input_embeddings()(ids), cache)

    def select(self, cache: Cache, rows: Sequence[int]) -> None:
        """Implements :meth:`raylens.engine.model.Model.select`."""
        index = torch.tensor(rows, device=self.device)
        cache.keys_values.batch_select_indices(index)
        cache.mask = cache.mask[index]

    def _forward(self, embeds: Tensor, cache: Cache) -> Tensor:
        """Runs the text model on (rows, new positions, hidden) and gives the last position's logits."""
        positions = (cache.mask.cumsum(1) - 1).clamp(min=0)[:, -embeds.shape[1] :]
        hidden = self._text_model(
            inputs_embeds=embeds,
            attention_mask=cache.mask,
            position_ids=positions,
            past_key_values=cache.keys_values,
            use_cache=True,
        ).last_hidden_state[:, -1]
        logits: Tensor = self._model.lm_head(hidden).float()
        return logits

    def _encode(self, tiles: NDArray[np.float32]) -> Tensor:
        """Image tokens of tiles (tiles, channels, side, side): (tiles, tokens per tile, hidden)."""
        pixels = torch.from_numpy(tiles).to(self.device, self._model.dtype)
        model = self._model.model
        return torch.cat(
            [
                model.connector(model.vision_model(pixel_values=part).last_hidden_state)
                for part in pixels.split(self._max_tiles_per_step)
            ]
        )

    def _messages(self, task: Task, image_count: int) -> tuple[Message, ...]:
        match task:
            case Chat(messages):
                return messages
            case Caption(length):
                text = CAPTION_PROMPTS[length]
            case Query(question):
                text = question
            case _:
                raise UnsupportedTask(f"this model can't {task.name}; it can {', '.join(sorted(self.tasks))}", "model")
        pictures = tuple(ImagePart(index) for index in range(image_count))
        return (Message(Role.USER, (*pictures, TextPart(text))),)

    def _cut(self, picture: Pixels, detail: Detail) -> tuple[NDArray[np.float32], Grid]:
        """A picture's tiles, the global view last, as (tiles, channels, side, side) floats."""
        if detail is Detail.HIGH:
            cut = self._image_processor(picture, return_row_col_info=True, input_data_format="channels_last")
            grid = max(1, cut["rows"][0][0]), max(1, cut["cols"][0][0])
        else:
            height, width = picture.shape[:2]
            grid = tile_grid(width, height, detail, self._tile, self._longest_edge)
            size = (grid[1] * self._tile, grid[0] * self._tile)
            resized = np.asarray(Image.fromarray(picture).resize(size, self._image_processor.resample))
            cut = self._image_processor(
                resized, do_resize=False, do_image_splitting=grid != (1, 1), input_data_format="channels_last"
            )
        return np.asarray(cut["pixel_values"][0], np.float32), grid

    def _token_ids(self, messages: Sequence[Message], grids: Sequence[Grid]) -> tuple[int, ...]:
        """The chat template's text as ids, each ``<image>`` as its tiles' tokens."""
        turns = [{"role": message.role.value, "content": self._content(message)} for message in messages]
        text: str = self._chat.apply_chat_template(
            turns,
            chat_template=self._chat.chat_template or DEFAULT_CHAT_TEMPLATE,
            add_generation_prompt=True,
            tokenize=False,
        )
        pieces = text.split("<image>")
        layouts = [self._layout(grid) for grid in grids]
        whole = pieces[0] + "".join(layout + piece for layout, piece in zip(layouts, pieces[1:], strict=True))
        return tuple(self._chat.encode(whole, add_special_tokens=False))

    def _content(self, message: Message) -> list[dict[str, str]]:
        """The template's parts. Texts that stand together are one: a control token could be spread over several."""
        content: list[dict[str, str]] = []
        for is_image, parts in groupby(message.parts, key=lambda part: isinstance(part, ImagePart)):
            if is_image:
                content += [{"type": "image"} for _ in parts]
            else:
                text = "".join(part.text for part in parts if isinstance(part, TextPart))
                content.append({"type": "text", "text": self._plain(text)})
        return content

    def _plain(self, text: str) -> str:
        """A user's text with no control token in it: a space goes behind the first character of each."""
        for token in self._control_tokens:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    def _layout(self, grid: Grid) -> str:
        rows, columns = grid
        tile = "<image>" * self._tokens_per_tile
        text = ""
        if rows * columns > 1:
            for row in range(1, rows + 1):
                for column in range(1, columns + 1):
                    text += f"<fake_token_around_image><row_{row}_col_{column}>{tile}"
                text += "\n"
            text += "\n"
        return f"{text}<fake_token_around_image><global-img>{tile}<fake_token_around_image>"


def _eos_ids(tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig) -> frozenset[int]:
    listed = generation.eos_token_id
    ids = listed if isinstance(listed, list) else [listed]
    return frozenset(int(i) for i in (*ids, tokenizer.eos_token_id) if i is not None)
