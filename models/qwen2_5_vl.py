"""Qwen2.5-VL (3B, 7B, …): dynamic resolution, window attention, rotary positions in time, rows and columns, grounding.

Weights, tokenizer and image processor are those of transformers (``modeling_qwen2_5_vl.py``). Boxes and points come as
the checkpoints were trained to write them, JSON in pixels of the resized picture (Qwen2.5-VL technical report, 2.1).
"""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from models.chat import check_length, messages_of, picture_key, picture_part, visual_parts
from models.chat_model import ChatModel
from models.linear import Quantize, from_weight, linear
from models.operations import attention, by_rows, turn
from models.options import DEFAULTS, SLICE, LoadOptions
from raylens.engine.model import PictureInput, Pixels, Prompt
from raylens.errors import InvalidRequest
from raylens.types import (
    Caption,
    Chat,
    Detail,
    Detect,
    ImagePart,
    Location,
    Point,
    Query,
    Region,
    Task,
    VideoPart,
    VisionRequest,
)

TASKS = frozenset({Caption.name, Query.name, Detect.name, Point.name, Chat.name})
GROUNDING_PROMPTS = {
    Detect.name: "Outline the position of each {} and output all the bbox coordinates in JSON format.",
    Point.name: "Point to each {} and output all the point coordinates in JSON format.",
}
"""After the cookbook on spatial understanding that was published with the checkpoints."""
LOW_DETAIL_PIXELS = 448 * 448
MAX_ASPECT = 200
"""Longer pictures can't be brought to whole patches (``smart_resize``)."""
_NUMBER = r"\s*(-?\d{1,5}(?:\.\d{1,9})?)\s*"
_BOX = re.compile(rf"[\[(]{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}[\])]")
_POINT = re.compile(rf"[\[(]{_NUMBER},{_NUMBER}[\])]|x\d*=\"{_NUMBER}\"\s+y\d*=\"{_NUMBER}\"")


def load(checkpoint: str, options: LoadOptions = DEFAULTS) -> Qwen2_5_VL:
    """Loads a checkpoint by hub id or from a folder. Raises ``OSError`` where it can't be found."""
    revision = options.revision
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint, revision=revision, dtype=options.dtype)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, revision=revision)
    image_processor = AutoImageProcessor.from_pretrained(checkpoint, revision=revision, backend="pil")
    return Qwen2_5_VL(model.to(options.device).eval(), tokenizer, image_processor, options)


@dataclass(frozen=True)
class Grid:
    """Patches of a picture: frames (in pairs), rows, columns."""

    frames: int
    rows: int
    columns: int

    @property
    def patches(self) -> int:
        return self.frames * self.rows * self.columns


@dataclass(frozen=True, eq=False)
class Patches:
    """Pixels (patches, channels · 2 · 14 · 14), 2 × 2 neighbors after one another, normalized."""

    values: NDArray[np.float32]
    grid: Grid
    seconds_per_frame: float = 0.0
    """Between pairs of frames, for a video."""


class Qwen2_5_VL(ChatModel):
    """Implements :class:`raylens.engine.model.Model`. Public methods that run the model are not thread-safe."""

    tasks = TASKS

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: Any,
        options: LoadOptions = DEFAULTS,
    ) -> None:
        super().__init__(model, model.model.language_model, tokenizer, options)
        config = model.config
        self._image_processor = image_processor
        self._patch, self._merge = int(image_processor.patch_size), int(image_processor.merge_size)
        self._min_pixels = options.min_pixels or int(image_processor.size["shortest_edge"])
        self._max_pixels = options.max_pixels or int(image_processor.size["longest_edge"])
        self._image_id, self._video_id = int(config.image_token_id), int(config.video_token_id)
        self._positions_per_second = int(config.vision_config.tokens_per_second)
        self._work = SLICE * options.tiles_per_step
        self._tower = Tower(model.model.visual, options.quantize)

    def prepare(self, request: VisionRequest, pictures: Sequence[Pixels]) -> Prompt:
        """Implements :meth:`raylens.engine.model.Model.prepare`."""
        messages = messages_of(request.task, len(pictures), self.tasks, GROUNDING_PROMPTS)
        inputs = [self._input(part, pictures) for part in visual_parts(messages)]
        token_ids: list[int] = []
        starts: list[int] = []
        waiting = iter(inputs)
        for token in self._chat.encode(self._chat.render(messages)):
            if token in (self._image_id, self._video_id):
                starts.append(len(token_ids))
                token_ids += [token] * next(waiting).tokens
            else:
                token_ids.append(token)
        check_length(len(token_ids), self.max_length)
        positions = self._positions(len(token_ids), starts, inputs)
        return Prompt(tuple(token_ids), tuple(inputs), tuple(starts), positions)

    def encode(self, pictures: Sequence[PictureInput]) -> Generator[None, None, list[Tensor]]:
        """Implements :meth:`raylens.engine.model.Model.encode`."""
        features: list[Tensor] = []
        for picture in pictures:
            if features:
                yield
            pixels = torch.from_numpy(picture.data.values).to(self.device, self.kv_shape.dtype)
            features.append((yield from self._tower.slices(pixels, picture.data.grid, self._work)))
        return features

    def locate(self, task: Task, text: str, prompt: Prompt) -> tuple[tuple[Region, ...], tuple[Location, ...]]:
        """Implements :meth:`raylens.engine.model.Model.locate`."""
        grid: Grid = prompt.pictures[0].data.grid
        width, height = grid.columns * self._patch, grid.rows * self._patch
        if isinstance(task, Detect):
            return regions(text, width, height), ()
        return (), locations(text, width, height)

    def _input(self, part: ImagePart | VideoPart, pictures: Sequence[Pixels]) -> PictureInput:
        if isinstance(part, VideoPart):
            frames = [pictures[index] for index in part.indices]
            patches = self._video(frames, part.frames_per_second)
        else:
            frames = [pictures[part.index]]
            patches = self._image(frames[0], part.detail)
        keys = b"".join(picture_key(frame, patches.grid, patches.seconds_per_frame) for frame in frames)
        key = picture_part(keys, len(frames))
        return PictureInput(key, patches.grid.patches // self._merge**2, patches)

    def _image(self, picture: Pixels, detail: Detail) -> Patches:
        limit = min(self._max_pixels, LOW_DETAIL_PIXELS) if detail is Detail.LOW else self._max_pixels
        rows, columns, frame = self._frame(picture, self._size(picture, limit))
        return Patches(self._patches([frame, frame]), Grid(1, rows, columns))

    def _video(self, frames: Sequence[Pixels], frames_per_second: float) -> Patches:
        """Frames in pairs; they share ``max_pixels``, and the first one's size holds for all."""
        limit = max(self._min_pixels, self._max_pixels * 2 // len(frames))
        size = self._size(frames[0], limit)
        shown = [self._frame(frame, size) for frame in frames]
        rows, columns, _ = shown[0]
        pairs = [frame for _, _, frame in shown]
        pairs += pairs[-1:] * (len(pairs) % 2)
        return Patches(self._patches(pairs), Grid(len(pairs) // 2, rows, columns), 2 / frames_per_second)

    def _size(self, picture: Pixels, limit: int) -> tuple[int, int]:
        """(height, width) in whole image tokens."""
        height, width = picture.shape[:2]
        if max(height, width) > MAX_ASPECT * min(height, width):
            raise InvalidRequest(
                f"image: {width} × {height} pixels; one side may be {MAX_ASPECT} times the other at most", "image"
            )
        smallest = min(self._min_pixels, limit)
        resized: tuple[int, int] = smart_resize(height, width, self._patch * self._merge, smallest, limit)
        return resized

    def _frame(self, picture: Pixels, size: tuple[int, int]) -> tuple[int, int, NDArray[np.float32]]:
        """Rows and columns of patches, and the normalized picture (channels, height, width)."""
        height, width = size
        processor = self._image_processor
        resized = np.asarray(Image.fromarray(picture).resize((width, height), processor.resample))
        scaled = resized.astype(np.float32).transpose(2, 0, 1) * np.float32(processor.rescale_factor)
        mean, std = (np.asarray(v, np.float32)[:, None, None] for v in (processor.image_mean, processor.image_std))
        return height // self._patch, width // self._patch, (scaled - mean) / std

    def _patches(self, frames: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Frames (channels, height, width), two of which make a patch, in the layout of the stock processors."""
        stacked = np.stack(frames)
        _, channels, height, width = stacked.shape
        patch, merge = self._patch, self._merge
        split = stacked.reshape(
            len(frames) // 2, 2, channels, height // patch // merge, merge, patch, width // patch // merge, merge, patch
        )
        ordered = split.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8)
        return np.ascontiguousarray(ordered).reshape(-1, channels * 2 * patch * patch)

    def _positions(self, length: int, starts: Sequence[int], inputs: Sequence[PictureInput]) -> NDArray[np.int64]:
        """Multimodal rotary positions (3, tokens): text counts; a picture's tokens stand at its beginning plus their
        time, row and column, and what follows goes on behind the longest side (``get_rope_index`` in transformers)."""
        positions = np.empty((3, length), np.int64)
        place = position = 0
        for start, picture in zip(starts, inputs, strict=True):
            text = start - place
            positions[:, place:start] = position + np.arange(text)
            position += text
            grid: Grid = picture.data.grid
            rows, columns = grid.rows // self._merge, grid.columns // self._merge
            frame, row, column = np.unravel_index(np.arange(picture.tokens), (grid.frames, rows, columns))
            seconds = picture.data.seconds_per_frame
            time = (frame * (self._positions_per_second * seconds)).astype(np.int64) if seconds else frame
            positions[:, start : start + picture.tokens] = position + np.stack([time, row, column])
            place, position = start + picture.tokens, position + max(rows, columns)
        positions[:, place:] = position + np.arange(length - place)
        return positions


class Tower:
    """The vision tower: windows in most layers, the whole picture in a few, and 2 × 2 patches merged to a token."""

    def __init__(self, tower: Any, quantize: Quantize | None) -> None:
        config = tower.config
        self._heads = int(config.num_heads)
        self._head_dim = int(config.hidden_size) // self._heads
        self._merge = int(config.spatial_merge_size)
        self._window = int(config.window_size) // self._merge // int(config.patch_size)
        self._whole = frozenset(config.fullatt_block_indexes)
        self._frequencies: Tensor = tower.rotary_pos_emb.inv_freq.float()
        self._patches = from_weight(tower.patch_embed.proj.weight.detach().flatten(1))
        self._blocks = [
            (
                block.norm1.weight.detach(),
                linear(block.attn.qkv, quantize=quantize),
                linear(block.attn.proj, quantize=quantize),
                block.norm2.weight.detach(),
                linear(block.mlp.gate_proj, block.mlp.up_proj, quantize=quantize),
                linear(block.mlp.down_proj, quantize=quantize),
            )
            for block in tower.blocks
        ]
        self._norm: Tensor = tower.merger.ln_q.weight.detach()
        self._expand, self._contract = (linear(tower.merger.mlp[place]) for place in (0, 2))

    def slices(self, pixels: Tensor, grid: Grid, work: int) -> Generator[None, None, Tensor]:
        """Image tokens (tokens, hidden) of patches (patches, values), ``work`` patches times layers at a time."""
        order, sizes = window_order(grid.frames, grid.rows // self._merge, grid.columns // self._merge, self._window)
        windows = [(count, size * self._merge**2) for count, size in sizes]
        with torch.inference_mode():
            states = self._in_order(self._patches(pixels), order)
            cos, sin = self._turns(grid, order, states)
        layers = max(1, work // grid.patches)
        for first in range(0, len(self._blocks), layers):
            if first:
                yield
            with torch.inference_mode():
                for index in range(first, min(first + layers, len(self._blocks))):
                    spans = [(grid.frames, grid.rows * grid.columns)] if index in self._whole else windows
                    states = self._block(index, states, cos, sin, spans)
        with torch.inference_mode():
            merged = F.rms_norm(states, self._norm.shape, self._norm, 1e-6).view(len(order), -1)
            tokens = self._contract(F.gelu(self._expand(merged)))
            return tokens[torch.from_numpy(np.argsort(order)).to(tokens.device)]

    def _in_order(self, states: Tensor, order: NDArray[np.int64]) -> Tensor:
        """Rows that belong to image tokens, ``merge`` × ``merge`` each, in the tokens' new order."""
        index = torch.from_numpy(order).to(states.device)
        return states.view(len(order), self._merge**2, -1)[index].flatten(0, 1)

    def _turns(self, grid: Grid, order: NDArray[np.int64], like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines (patches, 1, head size), float32: half of the frequencies turn with the row."""
        rows, columns, merge = grid.rows // self._merge, grid.columns // self._merge, self._merge
        _, row, column, inner_row, inner_column = np.unravel_index(
            np.arange(grid.patches), (grid.frames, rows, columns, merge, merge)
        )
        places = np.stack([row * merge + inner_row, column * merge + inner_column], -1).astype(np.float32)
        angles = torch.from_numpy(places).to(like.device)[:, :, None] * self._frequencies.to(like.device)
        angles = self._in_order(angles.flatten(1), order)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([cos, cos], -1)[:, None], torch.cat([-sin, sin], -1)[:, None]

    def _block(self, index: int, states: Tensor, cos: Tensor, sin: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
        norm1, qkv, out, norm2, gate_up, down = self._blocks[index]
        mixed = qkv(F.rms_norm(states, norm1.shape, norm1, 1e-6)).unflatten(-1, (3, self._heads, self._head_dim))
        query, key, value = mixed.unbind(1)
        # Turned in float32, as in the stock tower.
        query, key = (turn(part.float(), cos, sin).to(value.dtype) for part in (query, key))
        parts, first = [], 0
        for count, size in spans:
            last = first + count * size
            window = [part[first:last].unflatten(0, (count, size)) for part in (query, key, value)]
            parts.append(attention(*window).flatten(0, 1))
            first = last
        by_rows(out, torch.cat(parts) if len(parts) > 1 else parts[0], states)

        def mlp(rows: Tensor, plus: Tensor) -> Tensor:
            gate, up = gate_up(F.rms_norm(rows, norm2.shape, norm2, 1e-6)).chunk(2, -1)
            return down(F.silu(gate) * up, plus)

        by_rows(mlp, states, states)
        return states


def window_order(frames: int, rows: int, columns: int, window: int) -> tuple[NDArray[np.int64], list[tuple[int, int]]]:
    """The image tokens window by window, a frame's windows of like size together: each token's old place, and
    (windows, tokens of each) one after another.

    Attention doesn't ask in which order its rows stand, so any order will do in which a window's stand together.
    """
    row, column = np.divmod(np.arange(rows * columns), columns)
    number = row // window * -(-columns // window) + column // window
    sizes = np.bincount(number)
    order = np.lexsort((number, sizes[number]))
    kinds, counts = np.unique(sizes, return_counts=True)
    windows = [(int(count), int(size)) for size, count in zip(kinds, counts, strict=True)]
    return np.concatenate([order + frame * len(order) for frame in range(frames)]), windows * frames


def regions(text: str, width: int, height: int) -> tuple[Region, ...]:
    """Boxes ``[x1, y1, x2, y2]`` in pixels of a picture of this size, wherever they stand in the text: JSON that is
    fenced, cut short or not quite JSON is read as well. Boxes without area, and repeated ones, are left out."""
    found = []
    for match in _BOX.finditer(text):
        x1, y1, x2, y2 = (float(number) for number in match.groups())
        left, right = sorted((_share(x1, width), _share(x2, width)))
        top, bottom = sorted((_share(y1, height), _share(y2, height)))
        if left < right and top < bottom:
            found.append(Region(left, top, right, bottom))
    return tuple(dict.fromkeys(found))


def locations(text: str, width: int, height: int) -> tuple[Location, ...]:
    """The same for points: ``[x, y]``, or ``x="…" y="…"`` of XML. Where there are only boxes, their middles."""
    found = []
    for match in _POINT.finditer(text):
        x, y = (float(number) for number in match.groups() if number is not None)
        found.append(Location(_share(x, width), _share(y, height)))
    if not found:
        boxes = regions(text, width, height)
        found = [Location((box.x_min + box.x_max) / 2, (box.y_min + box.y_max) / 2) for box in boxes]
    return tuple(dict.fromkeys(found))


def _share(place: float, side: int) -> float:
    return min(1.0, max(0.0, place / side))
