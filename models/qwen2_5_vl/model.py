"""Qwen2.5-VL (3B, 7B, …): dynamic resolution, window attention, rotary positions in time, rows and
columns, grounding.

Weights, tokenizer and image processor are those of transformers (``modeling_qwen2_5_vl.py``). Boxes
and points come as the checkpoints were trained to write them, JSON in pixels of the resized picture
(Qwen2.5-VL technical report, 2.1).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from models.chat import check_length, messages_of, picture_key, picture_part, visual_parts
from models.chat_model import ChatModel
from models.operations import normalized
from models.options import DEFAULTS, LoadOptions
from models.qwen2_5_vl.grounding import locations, regions
from models.qwen2_5_vl.vision import Grid, VisionEncoder
from raylens.core.errors import InvalidRequest
from raylens.core.types import (
    Caption,
    Chat,
    Detail,
    Detect,
    Findings,
    ImagePart,
    Point,
    Query,
    VideoPart,
    VisionRequest,
)
from raylens.engine.model import PictureInput, Pixels, Prompt
from raylens.engine.transfer import upload

TASKS = frozenset({Caption.name, Query.name, Detect.name, Point.name, Chat.name})
GROUNDING_PROMPTS = {
    Detect.name: "Outline the position of each {} and output all the bbox coordinates in JSON format.",
    Point.name: "Point to each {} and output all the point coordinates in JSON format.",
}
"""After the cookbook on spatial understanding that was published with the checkpoints."""
LOW_DETAIL_PIXELS = 448 * 448
MAX_ASPECT = 200
"""Longer pictures can't be brought to whole patches (``smart_resize``)."""


def load(checkpoint: str, options: LoadOptions = DEFAULTS) -> Qwen2_5_VL:
    """Loads a checkpoint by hub id or from a folder. Raises ``OSError`` where it can't be found."""
    revision = options.revision
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        checkpoint, revision=revision, dtype=options.dtype
    )
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, revision=revision)
    image_processor = AutoImageProcessor.from_pretrained(
        checkpoint, revision=revision, backend="pil"
    )
    return Qwen2_5_VL(model.eval(), tokenizer, image_processor, replace(options, consume=True))


def resized_size(picture: Pixels, side: int, least: int, most: int) -> tuple[int, int]:
    """(height, width) in whole image tokens of ``side`` pixels, of an area between ``least`` and
    ``most``. Raises ``InvalidRequest``."""
    height, width = picture.shape[:2]
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise InvalidRequest(
            f"image: {width} × {height} pixels; one side may be {MAX_ASPECT} times the other at most",
            "image",
        )
    resized: tuple[int, int] = smart_resize(height, width, side, least, most)
    return resized


@dataclass(frozen=True, eq=False)
class Patches:
    """Pixels (patches, channels · 2 · 14 · 14) of 0 to 255, 2 × 2 neighbors after one another."""

    values: NDArray[np.uint8]
    grid: Grid
    seconds_per_frame: float = 0.0
    """Between pairs of frames, for a video."""


class Qwen2_5_VL(ChatModel):
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
        super().__init__(model, model.model.language_model, tokenizer, options)
        config = model.config
        self._image_processor = image_processor
        self._patch, self._merge = int(image_processor.patch_size), int(image_processor.merge_size)
        self._min_pixels = options.min_pixels or int(image_processor.size["shortest_edge"])
        self._max_pixels = options.max_pixels or int(image_processor.size["longest_edge"])
        self.image_id, self._video_id = int(config.image_token_id), int(config.video_token_id)
        self._positions_per_second = int(config.vision_config.tokens_per_second)
        self._work = options.slice
        depth = int(config.vision_config.depth)
        self._most_patches = self._work // depth if options.device.startswith("cuda") else 0
        self._vision_encoder = VisionEncoder(model.model.visual, self._packer, self._graphs.vision)

    def prepare(self, request: VisionRequest, pictures: Sequence[Pixels]) -> Prompt:
        """Implements :meth:`raylens.engine.model.Model.prepare`."""
        messages = messages_of(request.task, len(pictures), self.tasks, GROUNDING_PROMPTS)
        inputs: list[PictureInput] = []
        for part in visual_parts(messages):
            inputs.append(self._input(part, pictures))
            check_length(
                request.task, sum(shown.tokens for shown in inputs), self.max_length
            )  # before the next takes its memory
        token_ids: list[int] = []
        starts: list[int] = []
        waiting = iter(inputs)
        for token in self._chat.encode(self._chat.render(messages)):
            if token in (self.image_id, self._video_id):
                starts.append(len(token_ids))
                token_ids += [token] * next(waiting).tokens
            else:
                token_ids.append(token)
        check_length(request.task, len(token_ids), self.max_length)
        positions = self._positions(len(token_ids), starts, inputs)
        return Prompt(
            tuple(token_ids), tuple(inputs), tuple(starts), positions, decode_plan=request.task
        )

    def encode(self, pictures: Sequence[PictureInput]) -> Generator[None, None, list[Tensor]]:
        """Implements :meth:`raylens.engine.model.Model.encode`."""
        features: list[Tensor] = []
        for together in self._batches(pictures):
            if features:
                yield
            values = np.concatenate([picture.data.values for picture in together])
            pixels = self._normalized(values).to(self.kv_shape.dtype)
            features += yield from self._vision_encoder.slices(
                pixels, [picture.data.grid for picture in together], self._work
            )
        return features

    def _batches(self, pictures: Sequence[PictureInput]) -> Iterator[list[PictureInput]]:
        """Pictures that are encoded together: on a CPU one, on a GPU as many as a slice takes
        through all layers."""
        batch: list[PictureInput] = []
        patches = 0
        for picture in pictures:
            patches += picture.data.grid.patches
            if batch and patches > self._most_patches:
                yield batch
                batch, patches = [], picture.data.grid.patches
            batch.append(picture)
        yield batch

    def normalized(self, patches: Patches) -> Tensor:
        """Patches as the stock processor gives them: float32 (patches, values), on the model's
        device."""
        return self._normalized(patches.values)

    def _normalized(self, patches: NDArray[np.uint8]) -> Tensor:
        processor = self._image_processor
        values = upload(patches, self.device).view(len(patches), 3, -1, 1)
        scale = float(processor.rescale_factor)
        return normalized(values, scale, processor.image_mean, processor.image_std).flatten(1)

    def parse_findings(self, prompt: Prompt, output_ids: Sequence[int]) -> Findings:
        """Implements :meth:`raylens.engine.model.Model.parse_findings`."""
        if not isinstance(prompt.decode_plan, Detect | Point):
            return Findings()
        grid: Grid = prompt.pictures[0].data.grid
        width, height = grid.columns * self._patch, grid.rows * self._patch
        text, limit = self.tokenizer.decode(list(output_ids)), prompt.decode_plan.max_objects
        if isinstance(prompt.decode_plan, Detect):
            return Findings(regions=regions(text, width, height)[:limit])
        return Findings(locations=locations(text, width, height)[:limit])

    def _input(self, part: ImagePart | VideoPart, pictures: Sequence[Pixels]) -> PictureInput:
        if isinstance(part, VideoPart):
            frames = [pictures[index] for index in part.indices]
            patches = self._video(frames, part.frames_per_second)
        else:
            frames = [pictures[part.index]]
            patches = self._image(frames[0], part.detail)
        keys = b"".join(
            picture_key(frame, patches.grid, patches.seconds_per_frame) for frame in frames
        )
        key = picture_part(keys, len(frames))
        return PictureInput(key, patches.grid.patches // self._merge**2, patches)

    def _image(self, picture: Pixels, detail: Detail) -> Patches:
        limit = (
            min(self._max_pixels, LOW_DETAIL_PIXELS) if detail is Detail.LOW else self._max_pixels
        )
        frame = self._frame(picture, self._size(picture, limit))
        return self._patches([frame, frame])

    def _video(self, frames: Sequence[Pixels], frames_per_second: float) -> Patches:
        """Frames in pairs; they share ``max_pixels``, and the first one's size holds for all."""
        limit = max(self._min_pixels, self._max_pixels // -(-len(frames) // 2))
        size = self._size(frames[0], limit)
        shown = [self._frame(frame, size) for frame in frames]
        return self._patches(shown + shown[-1:] * (len(shown) % 2), 2 / frames_per_second)

    def _size(self, picture: Pixels, limit: int) -> tuple[int, int]:
        """(height, width) in whole image tokens."""
        return resized_size(picture, self._patch * self._merge, min(self._min_pixels, limit), limit)

    def _frame(self, picture: Pixels, size: tuple[int, int]) -> Pixels:
        height, width = size
        return np.asarray(
            Image.fromarray(picture).resize((width, height), self._image_processor.resample)
        )

    def _patches(self, frames: Sequence[Pixels], seconds_per_frame: float = 0.0) -> Patches:
        """Frames, two of which make a patch, in the layout of the stock processors."""
        stacked = np.stack(frames)
        patch, merge = self._patch, self._merge
        pairs, rows, columns = (
            len(frames) // 2,
            stacked.shape[1] // patch,
            stacked.shape[2] // patch,
        )
        split = stacked.reshape(
            pairs, 2, rows // merge, merge, patch, columns // merge, merge, patch, 3
        )
        values = split.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(pairs * rows * columns, -1)
        return Patches(np.ascontiguousarray(values), Grid(pairs, rows, columns), seconds_per_frame)

    def _positions(
        self, length: int, starts: Sequence[int], inputs: Sequence[PictureInput]
    ) -> NDArray[np.int64]:
        """Multimodal rotary positions (3, tokens): text counts; a picture's tokens stand at its
        beginning plus their time, row and column, and what follows goes on behind the longest
        side (``get_rope_index`` in transformers)."""
        positions = np.empty((3, length), np.int64)
        place = position = 0
        for start, picture in zip(starts, inputs, strict=True):
            text = start - place
            positions[:, place:start] = position + np.arange(text)
            position += text
            grid: Grid = picture.data.grid
            rows, columns = grid.rows // self._merge, grid.columns // self._merge
            frame, row, column = np.unravel_index(
                np.arange(picture.tokens), (grid.frames, rows, columns)
            )
            seconds = picture.data.seconds_per_frame
            time = (
                (frame * (self._positions_per_second * seconds)).astype(np.int64)
                if seconds
                else frame
            )
            positions[:, start : start + picture.tokens] = position + np.stack([time, row, column])
            place, position = start + picture.tokens, position + max(rows, columns)
        positions[:, place:] = position + np.arange(length - place)
        return positions
