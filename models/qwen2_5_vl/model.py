"""Qwen2.5-VL (3B, 7B, …): dynamic resolution, window attention, rotary positions over time, rows
and columns, and grounding.

Weights, tokenizer and image processor are those of transformers (``modeling_qwen2_5_vl.py``). The
checkpoints were trained to write boxes and points as JSON, in pixels of the resized picture
(Qwen2.5-VL technical report, 2.1).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import (
    PreTrainedTokenizerBase,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from models.chat import check_prompt_length, part_key, picture_key, task_messages, visual_parts
from models.chat_model import ChatModel, load_pretrained
from models.operations import normalize_pixels
from models.options import DEFAULTS, LoadOptions
from models.qwen2_5_vl.family import FAMILY, Qwen2_5_VLSettings
from models.qwen2_5_vl.grounding import parse_boxes, parse_points
from models.qwen2_5_vl.vision import Grid, VisionEncoder
from raylens.core.errors import InvalidRequest, picture_field
from raylens.core.types import (
    Chat,
    Completion,
    Detail,
    Detect,
    Findings,
    ImagePart,
    Message,
    PixelLimits,
    Point,
    Task,
    VideoPart,
    VisionRequest,
)
from raylens.engine.model import PictureInput, Pixels, Prompt
from raylens.engine.transfer import upload

GROUNDING_PROMPTS = {
    Detect.name: (
        "Outline the position of each {} and output all the bbox coordinates in JSON format."
    ),
    Point.name: "Point to each {} and output all the point coordinates in JSON format.",
}
"""After the spatial understanding cookbook that was published with the checkpoints."""
LOW_DETAIL_PIXELS = 448 * 448
MAX_ASPECT = 200
"""Largest ratio of a picture's sides that ``smart_resize`` supports."""


def load(checkpoint: str, options: LoadOptions = DEFAULTS) -> Qwen2_5_VL:
    """Load a checkpoint by its hub id or from a folder. Raises ``OSError`` if there is none."""
    return load_pretrained(Qwen2_5_VL, Qwen2_5_VLForConditionalGeneration, checkpoint, options)


def resized_size(
    width: int, height: int, token_side: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Return (height, width) of the resized picture, in pixels.

    Both are multiples of ``token_side``, the side of an image token in pixels, and the area is
    between ``min_pixels`` and ``max_pixels``. Raises ``InvalidRequest`` if the picture is too long.
    """
    aspect = max(height, width) / min(height, width)
    if aspect > MAX_ASPECT:
        # Preprocessing may have resized the picture, so its sides would mean nothing to the sender.
        field = picture_field(0)
        raise InvalidRequest(
            f"{field}: one side is {aspect:.0f} times the other; the limit is {MAX_ASPECT}",
            field,
            MAX_ASPECT,
            aspect,
        )
    resized: tuple[int, int] = smart_resize(height, width, token_side, min_pixels, max_pixels)
    return resized


class PixelBounds(NamedTuple):
    """Bounds of the area of a resized picture, in pixels."""

    min_pixels: int
    max_pixels: int

    def within(self, max_pixels: int) -> PixelBounds:
        """Return the bounds under an upper bound that is no higher than ``max_pixels``."""
        max_pixels = min(self.max_pixels, max_pixels)
        return PixelBounds(min(self.min_pixels, max_pixels), max_pixels)


@dataclass(frozen=True, eq=False)
class Patches:
    """The patches of a picture or video."""

    values: NDArray[np.uint8]
    """Pixels (patches, channels · 2 · 14 · 14) of 0 to 255; the 2 × 2 patches of an image token are
    consecutive."""
    grid: Grid
    seconds_per_frame: float = 0.0
    """Seconds between pairs of a video's frames; 0 for a picture."""


class Qwen2_5_VL(ChatModel):
    """A loaded checkpoint. Methods that run the model are not thread-safe."""

    tasks = FAMILY.tasks
    frames_as_pictures = None

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
        self._patch = int(image_processor.patch_size)
        self._merge = int(image_processor.merge_size)
        settings = options.family_settings(Qwen2_5_VLSettings)
        self._min_pixels = settings.min_pixels or int(image_processor.size["shortest_edge"])
        self._max_pixels = settings.max_pixels or int(image_processor.size["longest_edge"])
        self.image_id = int(config.image_token_id)
        self._video_id = int(config.video_token_id)
        ids = [self.image_id, self._video_id]
        self._placeholders = tuple(str(self.tokenizer.id_to_token(token)) for token in ids)
        self._positions_per_second = int(config.vision_config.tokens_per_second)
        self._slice_size = options.slice_size
        depth = int(config.vision_config.depth)
        is_on_gpu = options.device.startswith("cuda")
        self._batch_patches = self._slice_size // depth if is_on_gpu else 0
        """Patches of pictures that are encoded together, if there is more than one picture."""
        self._vision_encoder = VisionEncoder(model.model.visual, self._packer, self._graphs.vision)

    def prepare(self, request: VisionRequest, pictures: Sequence[Pixels]) -> Prompt:
        if isinstance(request.task, Completion):
            prompt = self._completion_prompt(request.task)
            return replace(prompt, positions=self._rope_positions(len(prompt.token_ids), (), ()))
        messages = task_messages(request.task, len(pictures), self.tasks, GROUNDING_PROMPTS)
        bounds = self._pixel_bounds(request.task)
        inputs: list[PictureInput] = []
        for part in visual_parts(messages):
            inputs.append(self._picture_input(part, pictures, bounds))
            # Checked for each picture, before the next one takes its memory.
            picture_tokens = sum(picture.num_tokens for picture in inputs)
            check_prompt_length(request.task, picture_tokens, self.max_length)
        token_ids, image_starts = self._tokenize(messages, request, inputs)
        check_prompt_length(request.task, len(token_ids), self.max_length)
        positions = self._rope_positions(len(token_ids), image_starts, inputs)
        prompt = Prompt(
            tuple(token_ids),
            tuple(inputs),
            tuple(image_starts),
            positions,
            decode_plan=request.task,
        )
        return self._chat_prompt(request, messages, prompt)

    def _pixel_bounds(self, task: Task) -> PixelBounds:
        """Return the bounds of the area of this request's pictures. Raises ``InvalidRequest``."""
        asked = (task.pixel_limits if isinstance(task, Chat) else None) or PixelLimits()
        bounds = PixelBounds(
            asked.min_pixels or min(self._min_pixels, asked.max_pixels or self._min_pixels),
            asked.max_pixels or max(self._max_pixels, asked.min_pixels or 0),
        )
        if bounds.min_pixels > bounds.max_pixels:
            raise InvalidRequest(
                f"mm_processor_kwargs.min_pixels: {bounds.min_pixels}; max_pixels is"
                f" {bounds.max_pixels}",
                "mm_processor_kwargs.min_pixels",
                bounds.max_pixels,
                bounds.min_pixels,
            )
        # Before a picture takes the memory: no picture may fill the context.
        token_area = (self._patch * self._merge) ** 2
        if asked.min_pixels is not None:
            check_prompt_length(task, asked.min_pixels // token_area, self.max_length)
        return bounds

    def _tokenize(
        self, messages: Sequence[Message], request: VisionRequest, inputs: Sequence[PictureInput]
    ) -> tuple[list[int], list[int]]:
        """Return the prompt's token ids, and the index of each picture's first token."""
        token_ids: list[int] = []
        image_starts: list[int] = []
        remaining = iter(inputs)
        for token in self._chat.encode(self._chat.render(messages, request)):
            if token in (self.image_id, self._video_id):
                image_starts.append(len(token_ids))
                token_ids += [token] * next(remaining).num_tokens
            else:
                token_ids.append(token)
        return token_ids, image_starts

    def encode(self, pictures: Sequence[PictureInput]) -> Generator[None, None, list[Tensor]]:
        features: list[Tensor] = []
        for batch in self._batches(pictures):
            if features:
                yield
            values = np.concatenate([picture.data.values for picture in batch])
            pixels = self._normalize(values).to(self.kv_spec.dtype)
            features += yield from self._vision_encoder.encode_in_slices(
                pixels, [picture.data.grid for picture in batch], self._slice_size
            )
        return features

    def _batches(self, pictures: Sequence[PictureInput]) -> Iterator[list[PictureInput]]:
        """Yield the pictures to encode together: one on a CPU, and on a GPU as many as a slice can
        take through all layers."""
        batch: list[PictureInput] = []
        patches = 0
        for picture in pictures:
            patches += picture.data.grid.patches
            if batch and patches > self._batch_patches:
                yield batch
                batch = []
                patches = picture.data.grid.patches
            batch.append(picture)
        yield batch

    def normalize_patches(self, patches: Patches) -> Tensor:
        """Return the patches as transformers' image processor does: float32 (patches, values), on
        the model's device."""
        return self._normalize(patches.values)

    def _normalize(self, patches: NDArray[np.uint8]) -> Tensor:
        processor = self._image_processor
        values = upload(patches, self.device).view(len(patches), 3, -1, 1)
        scale = float(processor.rescale_factor)
        return normalize_pixels(values, scale, processor.image_mean, processor.image_std).flatten(1)

    def parse_findings(self, prompt: Prompt, output_ids: Sequence[int]) -> Findings:
        task = prompt.decode_plan
        if not isinstance(task, Detect | Point):
            return Findings()
        grid: Grid = prompt.pictures[0].data.grid
        width = grid.columns * self._patch
        height = grid.rows * self._patch
        text = self.tokenizer.decode(list(output_ids))
        if isinstance(task, Detect):
            return Findings(regions=parse_boxes(text, width, height)[: task.max_objects])
        return Findings(locations=parse_points(text, width, height)[: task.max_objects])

    def _picture_input(
        self, part: ImagePart | VideoPart, pictures: Sequence[Pixels], bounds: PixelBounds
    ) -> PictureInput:
        indices = part.indices if isinstance(part, VideoPart) else (part.index,)
        frames = [pictures[index] for index in indices]
        try:
            if isinstance(part, VideoPart):
                patches = self._video_patches(frames, part.frames_per_second, bounds)
            else:
                patches = self._image_patches(frames[0], part.detail, bounds)
        except InvalidRequest as error:  # it names the first picture
            raise error.about(picture_field(indices[0])) from None
        frame_keys = b"".join(
            picture_key(frame, patches.grid, patches.seconds_per_frame) for frame in frames
        )
        key = part_key(frame_keys, len(frames))
        return PictureInput(key, patches.grid.patches // self._merge**2, patches)

    def _image_patches(self, picture: Pixels, detail: Detail, bounds: PixelBounds) -> Patches:
        if detail is Detail.LOW:
            bounds = bounds.within(LOW_DETAIL_PIXELS)
        frame = self._resize(picture, self._resized_size(picture, bounds))
        return self._split_into_patches([frame, frame])

    def _video_patches(
        self, frames: Sequence[Pixels], frames_per_second: float, bounds: PixelBounds
    ) -> Patches:
        """Pair the frames, repeating the last one if their number is odd.

        ``max_pixels`` is divided among the pairs. All frames get the first one's size.
        """
        max_pixels = max(bounds.min_pixels, bounds.max_pixels // -(-len(frames) // 2))
        size = self._resized_size(frames[0], bounds.within(max_pixels))
        resized = [self._resize(frame, size) for frame in frames]
        if len(resized) % 2:
            resized.append(resized[-1])
        return self._split_into_patches(resized, 2 / frames_per_second)

    def _resized_size(self, picture: Pixels, bounds: PixelBounds) -> tuple[int, int]:
        """Return (height, width) in pixels, in whole image tokens."""
        height, width = picture.shape[:2]
        return resized_size(width, height, self._patch * self._merge, *bounds)

    def input_size(self, width: int, height: int) -> tuple[int, int]:
        bounds = self._min_pixels, self._max_pixels
        rows, columns = resized_size(width, height, self._patch * self._merge, *bounds)
        return columns, rows

    def _resize(self, picture: Pixels, size: tuple[int, int]) -> Pixels:
        height, width = size
        return np.asarray(
            Image.fromarray(picture).resize((width, height), self._image_processor.resample)
        )

    def _split_into_patches(
        self, frames: Sequence[Pixels], seconds_per_frame: float = 0.0
    ) -> Patches:
        """Split frames into patches of two frames, in the layout of transformers' image
        processor."""
        stacked = np.stack(frames)
        patch = self._patch
        merge = self._merge
        pairs = len(frames) // 2
        rows = stacked.shape[1] // patch
        columns = stacked.shape[2] // patch
        split = stacked.reshape(
            pairs, 2, rows // merge, merge, patch, columns // merge, merge, patch, 3
        )
        values = split.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(pairs * rows * columns, -1)
        return Patches(np.ascontiguousarray(values), Grid(pairs, rows, columns), seconds_per_frame)

    def _rope_positions(
        self, length: int, image_starts: Sequence[int], inputs: Sequence[PictureInput]
    ) -> NDArray[np.int64]:
        """Return multimodal rotary positions (3, tokens), as ``get_rope_index`` in transformers
        does.

        Text tokens count up on all axes. A picture's tokens have the picture's first position plus
        their time, row and column. The text behind it continues after its longer side.
        """
        positions = np.empty((3, length), np.int64)
        end = 0  # tokens that have their positions
        position = 0  # of the next token
        for start, picture in zip(image_starts, inputs, strict=True):
            text = start - end
            positions[:, end:start] = position + np.arange(text)
            position += text
            end = start + picture.num_tokens
            positions[:, start:end] = position + self._picture_positions(picture)
            grid: Grid = picture.data.grid
            position += max(grid.rows // self._merge, grid.columns // self._merge)
        positions[:, end:] = position + np.arange(length - end)
        return positions

    def _picture_positions(self, picture: PictureInput) -> NDArray[np.int64]:
        """Return the time, row and column of each of a picture's tokens (3, tokens)."""
        grid: Grid = picture.data.grid
        shape = (grid.frames, grid.rows // self._merge, grid.columns // self._merge)
        time, row, column = np.unravel_index(np.arange(picture.num_tokens), shape)
        if picture.data.seconds_per_frame:
            step = self._positions_per_second * picture.data.seconds_per_frame
            time = (time * step).astype(np.int64)
        return np.stack([time, row, column])
