"""SmolVLM and SmolVLM2 (256M, 500M, 2.2B): prompts, picture tiles, vision encoder and text model.

Weights, tokenizer and image processor are those of transformers. The prompt's layout follows
``processing_smolvlm.py`` there: a picture is its tiles row by row, each preceded by
``<row_r_col_c>``, and then a global view. A video is an introduction, and its frames with their
times. SmolVLM2's checkpoints say how to resize frames; those of SmolVLM read pictures only.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
from num2words import num2words
from PIL import Image
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    PreTrainedTokenizerBase,
)
from transformers.models.smolvlm.processing_smolvlm import (
    DEFAULT_CHAT_TEMPLATE,
    DEFAULT_MEDIA_OUTTRO,
    DEFAULT_VIDEO_INTRO,
    FRAME_TIMESTAMP_MESSAGE,
)

from models.chat import (
    ChatText,
    check_prompt_length,
    part_key,
    picture_key,
    refuse_pixel_limits,
    task_messages,
    visual_parts,
)
from models.chat_model import ChatModel, load_pretrained
from models.operations import normalize_pixels
from models.options import DEFAULTS, LoadOptions
from models.smolvlm.family import FAMILY
from models.smolvlm.vision import VisionEncoder
from raylens.core.errors import UnsupportedTask
from raylens.core.types import Completion, Detail, Message, VideoPart, VisionRequest
from raylens.engine.model import PictureInput, Pixels, Prompt
from raylens.engine.transfer import upload

IMAGE = "<image>"
VIDEO = "<video>"
_IMAGE_PLACEHOLDER = re.compile(IMAGE)
_PLACEHOLDER = re.compile(f"{IMAGE}|{VIDEO}")
Grid = tuple[int, int]
"""Rows and columns of tiles; (1, 1) is a global view without tiles."""


def load(checkpoint: str, options: LoadOptions = DEFAULTS) -> SmolVLM:
    """Load a checkpoint by its hub id or from a folder. Raises ``OSError`` if there is none."""
    return load_pretrained(SmolVLM, AutoModelForImageTextToText, checkpoint, options)


def tile_grid(width: int, height: int, detail: Detail, tile: int, longest_edge: int) -> Grid:
    """Return the tile grid of a picture of this size, in pixels, for ``low`` and ``auto``.

    ``low`` has no tiles. ``auto`` has as many as the picture fills without being enlarged, once it
    fits into ``longest_edge``. ``high`` is the checkpoint's own policy, which enlarges every
    picture to ``longest_edge``; the image processor implements it.
    """
    if detail is Detail.LOW:
        return 1, 1
    scale = min(1.0, longest_edge / max(width, height))
    return max(1, int(height * scale) // tile), max(1, int(width * scale) // tile)


def video_frame_size(width: int, height: int, longest_edge: int) -> tuple[int, int]:
    """Return the (width, height) to which a video's frames are resized first.

    Source: ``get_resize_output_image_size`` in ``video_processing_smolvlm.py``.
    """
    if width >= height:
        other = int(longest_edge * height / width)
        return longest_edge, max(1, other + other % 2)
    other = int(longest_edge * width / height)
    return max(1, other + other % 2), longest_edge


def _read_frame_side(image_processor: Any) -> int | None:
    """Return the longest edge of a video's frames; None if the checkpoint reads no videos."""
    sampling = getattr(image_processor, "video_sampling", None)
    if not isinstance(sampling, Mapping) or "video_size" not in sampling:
        return None
    return int(sampling["video_size"]["longest_edge"])


class SmolVLM(ChatModel):
    """A loaded checkpoint. Methods that run the model are not thread-safe."""

    tasks = FAMILY.tasks
    _placeholders = (IMAGE,)

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
        self._tiles_per_step = options.tiles_per_batch
        self._slice_size = options.slice_size
        side = config.vision_config.image_size // config.vision_config.patch_size
        self._tokens_per_tile = (side // config.scale_factor) ** 2
        self._tile = int(image_processor.max_image_size["longest_edge"])
        self._longest_edge = int(image_processor.size["longest_edge"])
        self._image_id = int(config.image_token_id)
        self._frame_side = _read_frame_side(image_processor)
        if self._frame_side is not None:
            self.frames_as_pictures = None
        # As in transformers, a chat with a video has a template of its own.
        self._video_chat = ChatText(
            tokenizer, template=DEFAULT_CHAT_TEMPLATE, placeholders=(VIDEO,)
        )
        self.normalization = (
            float(image_processor.rescale_factor),
            tuple(image_processor.image_mean),
            tuple(image_processor.image_std),
        )
        self._vision_encoder = VisionEncoder(model.model, self._packer, self._graphs.vision)

    def prepare(self, request: VisionRequest, pictures: Sequence[Pixels]) -> Prompt:
        if isinstance(request.task, Completion):
            return self._completion_prompt(request.task)
        refuse_pixel_limits(request.task)
        messages = task_messages(request.task, len(pictures), self.tasks, {})
        inputs: list[PictureInput] = []
        texts: list[str] = []
        for part in visual_parts(messages):
            if isinstance(part, VideoPart):
                if self._frame_side is None:
                    message = "messages: this checkpoint reads pictures, but no videos"
                    raise UnsupportedTask(message, "messages")
                inputs += [self._frame_tile(pictures[index]) for index in part.indices]
                texts.append(self._video_text(part))
            else:
                tiles, grid = self._split_into_tiles(pictures[part.index], part.detail)
                inputs += tiles
                texts.append(self._picture_text(grid))
            # Checked for each picture, before the next: tiles take far more memory than a picture.
            check_prompt_length(request.task, self._tokens_per_tile * len(inputs), self.max_length)
        token_ids = self._tokenize(messages, request, texts)
        check_prompt_length(request.task, len(token_ids), self.max_length)
        image_tokens = np.flatnonzero(np.array(token_ids) == self._image_id)
        image_starts = image_tokens[:: self._tokens_per_tile]
        prompt = Prompt(tuple(token_ids), tuple(inputs), tuple(map(int, image_starts)))
        return self._chat_prompt(request, messages, prompt)

    def _tokenize(
        self, messages: Sequence[Message], request: VisionRequest, texts: Sequence[str]
    ) -> list[int]:
        """Return the prompt's token ids. ``texts`` are those of pictures and videos, in order."""
        has_video = any(isinstance(part, VideoPart) for part in visual_parts(messages))
        chat = self._video_chat if has_video else self._chat
        placeholder = _PLACEHOLDER if has_video else _IMAGE_PLACEHOLDER
        text, *following = placeholder.split(chat.render(messages, request))
        for visual, after in zip(texts, following, strict=True):
            text += visual + after
        return self._chat.encode(text)

    def input_size(self, width: int, height: int) -> tuple[int, int]:
        rows, columns = tile_grid(width, height, Detail.AUTO, self._tile, self._longest_edge)
        return columns * self._tile, rows * self._tile

    def encode(self, pictures: Sequence[PictureInput]) -> Generator[None, None, list[Tensor]]:
        """Encode tiles: each of these ``pictures`` is one tile."""
        features: list[Tensor] = []
        for start in range(0, len(pictures), self._tiles_per_step):
            if start:
                yield
            batch = pictures[start : start + self._tiles_per_step]
            tiles = np.stack([picture.data for picture in batch])
            pixels = normalize_pixels(upload(tiles, self.device), *self.normalization).to(
                self.kv_spec.dtype
            )
            encoded = yield from self._vision_encoder.encode_in_slices(pixels, self._slice_size)
            # Cached tiles would keep the whole batch's tensor alive, so each is copied.
            features += [tile.clone() for tile in encoded]
        return features

    def _split_into_tiles(self, picture: Pixels, detail: Detail) -> tuple[list[PictureInput], Grid]:
        """Return a picture's tiles, the global view last, and their grid.

        Each tile is (channels, side, side) of 0 to 255.
        """
        plain = {"do_rescale": False, "do_normalize": False, "input_data_format": "channels_last"}
        if detail is Detail.HIGH:
            split = self._image_processor(picture, return_row_col_info=True, **plain)
            grid = max(1, split["rows"][0][0]), max(1, split["cols"][0][0])
        else:
            height, width = picture.shape[:2]
            grid = tile_grid(width, height, detail, self._tile, self._longest_edge)
            size = (grid[1] * self._tile, grid[0] * self._tile)
            resized = np.asarray(
                Image.fromarray(picture).resize(size, self._image_processor.resample)
            )
            split = self._image_processor(
                resized, do_resize=False, do_image_splitting=grid != (1, 1), **plain
            )
        key = picture_key(picture, detail is Detail.HIGH, grid)
        tiles = [
            PictureInput(part_key(key, number), self._tokens_per_tile, np.asarray(tile, np.uint8))
            for number, tile in enumerate(split["pixel_values"][0])
        ]
        return tiles, grid

    def _frame_tile(self, frame: Pixels) -> PictureInput:
        """Return a frame of a video as one tile: resized to the checkpoint's size for videos, and
        then to a square."""
        picture = Image.fromarray(frame)
        size = video_frame_size(*picture.size, self._frame_side or self._tile)
        square = (self._tile, self._tile)
        resized = picture.resize(size, Image.Resampling.BICUBIC).resize(
            square, Image.Resampling.BICUBIC
        )
        tile = np.asarray(resized).transpose(2, 0, 1)
        key = picture_key(frame, VIDEO, self._frame_side)
        return PictureInput(key, self._tokens_per_tile, np.ascontiguousarray(tile))

    def _video_text(self, video: VideoPart) -> str:
        """Return a video's text in the prompt, as ``SmolVLMProcessor.replace_video_token`` does."""
        count = len(video.indices)
        seconds = count / video.frames_per_second
        times = video.timestamps or [index / video.frames_per_second for index in range(count)]
        text = DEFAULT_VIDEO_INTRO.format(
            frame_count=num2words(count), video_duration=timedelta(seconds=int(seconds))
        )
        for time in times:
            timestamp = f"{int(time // 60):02d}:{int(time % 60):02d}"
            text += FRAME_TIMESTAMP_MESSAGE.format(timestamp=timestamp) + self._picture_text((1, 1))
        return text + str(DEFAULT_MEDIA_OUTTRO)

    def _picture_text(self, grid: Grid) -> str:
        """Return a picture's text in the prompt: its tiles, if there are several, and the global
        view."""
        rows, columns = grid
        tile = IMAGE * self._tokens_per_tile
        text = ""
        if rows * columns > 1:
            for row in range(1, rows + 1):
                for column in range(1, columns + 1):
                    text += f"<fake_token_around_image><row_{row}_col_{column}>{tile}"
                text += "\n"
            text += "\n"
        return f"{text}<fake_token_around_image><global-img>{tile}<fake_token_around_image>"
