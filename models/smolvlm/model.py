"""SmolVLM and SmolVLM2 (256M, 500M, 2.2B): prompts, picture tiles, the vision tower and the text
model.

Weights, tokenizer and image processor are those of transformers; the prompt's layout follows
``processing_smolvlm.py`` there: a picture is its tiles row by row, each behind ``<row_r_col_c>``,
then a global view.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)
from transformers.models.smolvlm.processing_smolvlm import DEFAULT_CHAT_TEMPLATE

from models.chat import check_length, image_parts, messages_of, picture_key, picture_part
from models.chat_model import ChatModel
from models.operations import normalized
from models.options import DEFAULTS, LoadOptions
from models.smolvlm.vision import VisionEncoder
from raylens.core.types import Caption, Chat, Detail, Query, VisionRequest
from raylens.engine.model import PictureInput, Pixels, Prompt
from raylens.engine.transfer import upload

TASKS = frozenset({Caption.name, Query.name, Chat.name})
Grid = tuple[int, int]
"""Rows and columns of tiles; (1, 1) is a single view."""


def load(checkpoint: str, options: LoadOptions = DEFAULTS) -> SmolVLM:
    """Loads a checkpoint by hub id or from a folder. Raises ``OSError`` where it can't be found."""
    revision = options.revision
    model = AutoModelForImageTextToText.from_pretrained(
        checkpoint, revision=revision, dtype=options.dtype
    )
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, revision=revision)
    image_processor = AutoImageProcessor.from_pretrained(
        checkpoint, revision=revision, backend="pil"
    )
    return SmolVLM(model.eval(), tokenizer, image_processor, replace(options, consume=True))


def tile_grid(width: int, height: int, detail: Detail, tile: int, longest_edge: int) -> Grid:
    """How many tiles a picture of this size is cut into at ``low`` (one) and ``auto``.

    ``auto`` takes as many as the picture fills without being enlarged, within ``longest_edge``.
    ``high`` is the checkpoint's own policy, which enlarges every picture to ``longest_edge``; its
    image processor knows it.
    """
    if detail is Detail.LOW:
        return 1, 1
    scale = min(1.0, longest_edge / max(width, height))
    return max(1, int(height * scale) // tile), max(1, int(width * scale) // tile)


class SmolVLM(ChatModel):
    """Implements :class:`raylens.engine.model.Model`. Public methods that run the model are not
    thread-safe."""

    tasks = TASKS

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: Any,
        options: LoadOptions = DEFAULTS,
    ) -> None:
        super().__init__(model, model.model.text_model, tokenizer, options, DEFAULT_CHAT_TEMPLATE)
        config = model.config
        self._image_processor = image_processor
        self._tiles_per_step, self._work = options.tiles, options.slice
        side = config.vision_config.image_size // config.vision_config.patch_size
        self._tokens_per_tile = (side // config.scale_factor) ** 2
        self._tile = int(image_processor.max_image_size["longest_edge"])
        self._longest_edge = int(image_processor.size["longest_edge"])
        self._image_id = int(config.image_token_id)
        self.normal = (
            float(image_processor.rescale_factor),
            tuple(image_processor.image_mean),
            tuple(image_processor.image_std),
        )
        self._vision_encoder = VisionEncoder(model.model, self._packer, self._graphs.vision)

    def prepare(self, request: VisionRequest, pictures: Sequence[Pixels]) -> Prompt:
        """Implements :meth:`raylens.engine.model.Model.prepare`."""
        messages = messages_of(request.task, len(pictures), self.tasks, {})
        parts = image_parts(messages)
        cut: list[tuple[list[PictureInput], Grid]] = []
        for part in parts:
            cut.append(self._cut(pictures[part.index], part.detail))
            # Before the next: tiles take far more memory than their picture.
            check_length(
                request.task,
                sum(self._tokens_per_tile * len(tiles) for tiles, _ in cut),
                self.max_length,
            )
        text = self._chat.render(messages).split("<image>")
        layouts = [self._layout(grid) for _, grid in cut]
        whole = text[0] + "".join(
            layout + piece for layout, piece in zip(layouts, text[1:], strict=True)
        )
        token_ids = self._chat.encode(whole)
        check_length(request.task, len(token_ids), self.max_length)
        starts = np.flatnonzero(np.array(token_ids) == self._image_id)[:: self._tokens_per_tile]
        inputs = [tile for tiles, _ in cut for tile in tiles]
        return Prompt(tuple(token_ids), tuple(inputs), tuple(map(int, starts)))

    def encode(self, pictures: Sequence[PictureInput]) -> Generator[None, None, list[Tensor]]:
        """Implements :meth:`raylens.engine.model.Model.encode`; a picture here is a tile."""
        features: list[Tensor] = []
        for start in range(0, len(pictures), self._tiles_per_step):
            if start:
                yield
            tiles = np.stack(
                [picture.data for picture in pictures[start : start + self._tiles_per_step]]
            )
            pixels = normalized(upload(tiles, self.device), *self.normal).to(self.kv_shape.dtype)
            encoded = yield from self._vision_encoder.slices(pixels, self._work)
            # Copies: a part of a tensor would keep the whole of it alive, for as long as one tile
            # is kept.
            features += [tile.clone() for tile in encoded]
        return features

    def _cut(self, picture: Pixels, detail: Detail) -> tuple[list[PictureInput], Grid]:
        """A picture's tiles, the global view last, each (channels, side, side) of 0 to 255."""
        plain = {"do_rescale": False, "do_normalize": False, "input_data_format": "channels_last"}
        if detail is Detail.HIGH:
            cut = self._image_processor(picture, return_row_col_info=True, **plain)
            grid = max(1, cut["rows"][0][0]), max(1, cut["cols"][0][0])
        else:
            height, width = picture.shape[:2]
            grid = tile_grid(width, height, detail, self._tile, self._longest_edge)
            size = (grid[1] * self._tile, grid[0] * self._tile)
            resized = np.asarray(
                Image.fromarray(picture).resize(size, self._image_processor.resample)
            )
            cut = self._image_processor(
                resized, do_resize=False, do_image_splitting=grid != (1, 1), **plain
            )
        key = picture_key(picture, detail is Detail.HIGH, grid)
        tiles = [
            PictureInput(
                picture_part(key, number), self._tokens_per_tile, np.asarray(tile, np.uint8)
            )
            for number, tile in enumerate(cut["pixel_values"][0])
        ]
        return tiles, grid

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
