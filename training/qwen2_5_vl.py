"""Training of the pocket Qwen2.5-VL on drawn scenes; :mod:`training.trainer` has the common parts.

Besides captions and queries, the model learns boxes and points, as JSON in pixels of the resized
picture. Three measures make that fast to learn:

- Every coordinate is one token. The embeddings of the numbers start as sines and cosines of the
  number, and the loss of a coordinate includes its neighbors: a pixel off is nearly right.
- The probe reads the content of each image token: kind, color and cell of the shape there and,
  through the embeddings of the numbers, the four edges of its box. The text model then only has to
  copy what the encoder wrote into the token.
- A quarter of the pictures are cropped at random around their shapes. The cells of the grid mean
  nothing there, but boxes do.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from models.pocket.scenes import COLORS, KINDS, Scene, Shape
from training import trainer
from training.json_answers import (
    JsonExample,
    build_json_examples,
    build_similar_queries,
    encode_answer,
    schema_prompt,
    tool_of,
    write_answer,
)
from training.pictures import draw_scenes
from training.prompts import DETECT_PROMPT, POINT_PROMPT, SYSTEM_PROMPTS
from training.qwen2_5_vl_checkpoint import (
    MAX_PIXELS,
    MERGE,
    MIN_PIXELS,
    PATCH,
    TOOL_CALL,
    number_ids,
    pocket_config,
    pocket_tokenizer,
    save_pocket,
)
from training.rows import IGNORED, PackedBatch, Row, Segment, pack, score_segments
from training.trainer import Example, build_examples, group_by_length
from training.warm_start import copy_weights
from training.windows import (
    COLOR_INDEX,
    GRID_TASKS,
    KIND_INDEX,
    Window,
    random_subject,
    random_window,
)

TOKEN = PATCH * MERGE
"""Side of an image token, in pixels."""
HIDDEN = 128
TOLERANCE = 2
"""Pixels within which a coordinate counts as right."""


@dataclass(frozen=True)
class TrainingSettings(trainer.TrainingSettings):
    first_mix: tuple[int, int] = (40, 16)
    last_mix: tuple[int, int] = (40, 40)
    target_std: float = 1.0
    """Standard deviation of the target of a coordinate, in pixels."""


@dataclass(frozen=True)
class Picture:
    """A picture at the model's own size."""

    pixels: NDArray[np.uint8]
    """(height, width, 3), both multiples of 28."""
    scene: Scene
    window: Window
    """The part of the scene that the picture shows."""
    is_cropped: bool
    """Whether the window is smaller than the scene."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of image tokens."""
        return self.pixels.shape[0] // TOKEN, self.pixels.shape[1] // TOKEN

    def pixel_at(self, x: float, y: float) -> tuple[int, int]:
        """Return the pixel (x, y) of the picture that shows a point of the scene."""
        left, top, right, bottom = self.window
        height, width = self.pixels.shape[:2]
        column = round((x - left) / (right - left) * width)
        row = round((y - top) / (bottom - top) * height)
        return min(width, max(0, column)), min(height, max(0, row))

    def box(self, shape: Shape) -> tuple[int, int, int, int]:
        """Return the shape's box (x_min, y_min, x_max, y_max) in pixels of the picture."""
        x_min, y_min, x_max, y_max = shape.box
        return (*self.pixel_at(x_min, y_min), *self.pixel_at(x_max, y_max))


class Pictures(IterableDataset[Picture]):
    """An endless dataset of scenes at the model's own size."""

    def __init__(self, seed: int, max_side: int) -> None:
        self.seed = seed
        self.max_side = max_side

    def __iter__(self) -> Iterator[Picture]:
        rng = random.Random(self.seed)
        for scene, pixels in draw_scenes(rng, self.max_side):
            is_cropped = rng.random() < 0.25
            window = random_window(scene, rng) if is_cropped else (0, 0, scene.width, scene.height)
            resized = _resize(Image.fromarray(pixels).crop(window), rng)
            yield Picture(resized, scene, window, is_cropped)


def _resize(picture: Image.Image, rng: random.Random) -> NDArray[np.uint8]:
    """Resize to the model's own size, sometimes through another size as preprocessing may do it.

    One time in seven, that size has other proportions.
    """
    pick = rng.random()
    if pick < 0.4:
        scale = rng.uniform(112, 512) / max(picture.size)
        size = round(picture.width * scale), round(picture.height * scale)
        if pick < 0.15:
            size = rng.randint(112, 512), rng.randint(112, 512)
        picture = picture.resize(size, rng.choice((Image.Resampling.LANCZOS, Image.Resampling.BOX)))
    height, width = smart_resize(picture.height, picture.width, TOKEN, MIN_PIXELS, MAX_PIXELS)
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))


def build_grounding_examples(picture: Picture, rng: random.Random) -> list[Example]:
    """Return requests for the boxes of two subjects and the points of two subjects.

    Some subjects are absent from the scene.
    """
    result = []
    for task, prompt, key in (
        ("detect", DETECT_PROMPT, "bbox_2d"),
        ("point", POINT_PROMPT, "point_2d"),
    ) * 2:
        name = random_subject(picture.scene, rng)
        objects = []
        for shape in picture.scene.shapes:
            if not shape.matches(name):
                continue
            numbers = picture.box(shape) if task == "detect" else picture.pixel_at(shape.x, shape.y)
            objects.append(f'{{"{key}": [{", ".join(map(str, numbers))}], "label": "{name}"}}')
        result.append(Example(task, prompt.format(name), f"[{', '.join(objects)}]"))
    return result


class Prompts:
    """Builds token ids in the checkpoint's own chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self.encode = lambda text: tokenizer.encode(text, add_special_tokens=False)
        self.image_id = tokenizer.convert_tokens_to_ids("<|image_pad|>")

    def opening(self, system: str = "", tools: Sequence[dict[str, Any]] = ()) -> str:
        """Return the system prompt and the start of the user's turn."""
        messages = [{"role": "user", "content": ""}]
        if system:
            messages.insert(0, {"role": "system", "content": system})
        text: str = self._tokenizer.apply_chat_template(
            messages, tools=list(tools) or None, tokenize=False
        )
        return text.removesuffix("<|im_end|>\n")

    def build_segment(self, task: str, *turns: tuple[str, str]) -> Segment:
        """Return a segment of (question, answer) turns; the loss includes the answers."""
        ids: list[int] = []
        learn: list[bool] = []
        for index, (question, answer) in enumerate(turns):
            separator = "\n<|im_start|>user\n" if index else ""
            question_ids = self.encode(f"{separator}{question}<|im_end|>\n<|im_start|>assistant\n")
            answer_ids = self.encode(f"{answer}<|im_end|>")
            ids += question_ids + answer_ids
            learn += [False] * len(question_ids) + [True] * len(answer_ids)
        return Segment(task, ids, learn)

    def build_json_segment(
        self, example: JsonExample, question: str | None = None, tool: dict[str, Any] | None = None
    ) -> Segment:
        """Return a segment with an answer as JSON, or as a call of ``tool``.

        The loss includes the values.
        """
        text = example.question if question is None else question
        ids = self.encode(f"{text}<|im_end|>\n<|im_start|>assistant\n")
        opening, closing = "", ""
        task = example.task
        if tool is not None:
            call = f'{{"name": "{tool["function"]["name"]}", "arguments": ARGUMENTS}}'
            opening, closing = TOOL_CALL.replace("{}", call).split("ARGUMENTS")
            task += " tool"
        answer_ids, learn = encode_answer(write_answer(example, opening, closing), self._tokenizer)
        # Whether to call a tool is clear only if JSON was asked for.
        learn[0] = tool is not None and example.task != "json query"
        return Segment(task, ids + answer_ids, [False] * len(ids) + learn)

    def encode_prefix(self, text: str, picture: Picture) -> tuple[list[int], NDArray[np.int64]]:
        """Return the ids of a text followed by the picture, and their rotary positions.

        The positions (3, length) are time, row and column. Rows and columns count for image tokens
        only; for text all three are equal.
        """
        head = self.encode(text + "<|vision_start|>")
        tail = self.encode("<|vision_end|>")
        rows, columns = picture.grid
        start = len(head)
        row, column = np.divmod(np.arange(rows * columns), columns)
        head_positions = np.tile(np.arange(start), (3, 1))
        image_positions = start + np.stack([np.zeros_like(row), row, column])
        tail_positions = np.tile(start + max(rows, columns) + np.arange(len(tail)), (3, 1))
        ids = head + [self.image_id] * (rows * columns) + tail
        return ids, np.concatenate([head_positions, image_positions, tail_positions], axis=1)


def build_packed_row(
    index: int, picture: Picture, prompts: Prompts, settings: TrainingSettings, rng: random.Random
) -> Row:
    """Return a row with the picture first, and captions and many questions about it.

    Every other time, the last segment is a conversation of two turns. A third of the rows have a
    tool in the system prompt, which answers the questions for JSON, and a sixth another system
    prompt.
    """
    candidates = _answerable_examples(picture, rng)
    chosen = [example for example in candidates if example.task.startswith("caption")]
    others = [example for example in candidates if not example.task.startswith("caption")]
    count = min(len(others), settings.text_questions - len(chosen))
    chosen += rng.sample(others, count)
    chosen += build_grounding_examples(picture, rng)
    segments = [
        prompts.build_segment(example.task, (example.question, example.answer))
        for example in chosen
    ]
    examples = [
        example
        for _ in range(settings.json_rounds)
        for example in build_json_examples(picture.scene, rng, not picture.is_cropped)
    ]
    pick = rng.random()
    system = rng.choice(SYSTEM_PROMPTS) if 0.3 < pick < 0.5 else ""
    tools: list[dict[str, Any]] = []
    if pick < 0.35:
        example = _choose_json_example(examples, rng)
        tools, tool = _choose_tools(example, picture, rng)
        segments.append(prompts.build_json_segment(example, tool=tool))
        segments += _build_similar_calls(example, tool, picture, prompts, rng)
    else:
        segments += [prompts.build_json_segment(example) for example in examples]
    rng.shuffle(segments)
    if rng.random() < 0.5:
        first, second = rng.sample(chosen, 2)
        segments[-1] = prompts.build_segment(
            "second turn", (first.question, first.answer), (second.question, second.answer)
        )
    prefix, positions = prompts.encode_prefix(prompts.opening(system, tools), picture)
    return Row(prefix, [index], segments, positions)


def build_reordered_row(index: int, picture: Picture, prompts: Prompts, rng: random.Random) -> Row:
    """Return a row with one question, before the picture or after another system prompt."""
    pick = rng.random()
    if pick < 0.45:
        return build_tool_row(index, picture, prompts, rng)
    if pick < 0.55:
        return _build_json_row(index, picture, prompts, rng)
    example = _choose_example(picture, rng)
    if rng.random() < 0.75:
        prefix, positions = prompts.encode_prefix(prompts.opening() + example.question, picture)
        segment = prompts.build_segment(f"text first {example.task[:7]}", ("", example.answer))
    else:
        system = rng.choice(SYSTEM_PROMPTS)
        prefix, positions = prompts.encode_prefix(prompts.opening(system), picture)
        segment = prompts.build_segment("system prompt", (example.question, example.answer))
    return Row(prefix, [index], [segment], positions)


def _build_json_row(index: int, picture: Picture, prompts: Prompts, rng: random.Random) -> Row:
    """Return a row whose answer is JSON, with the question before the picture or after another
    system prompt."""
    example = rng.choice(build_json_examples(picture.scene, rng, not picture.is_cropped))
    pick = rng.random()
    system = ""
    if pick < 0.5:
        system = rng.choice(SYSTEM_PROMPTS) if pick < 0.15 else schema_prompt(example, rng)
    text = example.question if pick > 0.35 else ""
    prefix, positions = prompts.encode_prefix(prompts.opening(system) + text, picture)
    segment = prompts.build_json_segment(example, "" if text else None)
    return Row(prefix, [index], [segment], positions)


def build_tool_row(index: int, picture: Picture, prompts: Prompts, rng: random.Random) -> Row:
    """Return a row with a tool in the system prompt.

    Its questions are answered by calls of the tool. One of them is answered in words, too: without
    a forced call, the model calls the tool only when it is asked for JSON.
    """
    examples = build_json_examples(picture.scene, rng, not picture.is_cropped)
    example = _choose_json_example(examples, rng)
    tools, tool = _choose_tools(example, picture, rng)
    system = rng.choice(SYSTEM_PROMPTS) if rng.random() < 0.3 else ""
    text_first = rng.random() < 0.4
    opening = prompts.opening(system, tools) + (example.question if text_first else "")
    prefix, positions = prompts.encode_prefix(opening, picture)
    question = "" if text_first else example.question
    segments = [prompts.build_json_segment(example, question, tool)]
    if not text_first:
        segments += _build_similar_calls(example, tool, picture, prompts, rng)
        in_words = rng.choice(_answerable_examples(picture, rng))
        segments.append(
            prompts.build_segment("words despite tool", (in_words.question, in_words.answer))
        )
    return Row(prefix, [index], segments, positions)


def _choose_json_example(examples: Sequence[JsonExample], rng: random.Random) -> JsonExample:
    """Return an example for a call of a tool: every other time a list, which is the hardest."""
    lists = [example for example in examples if example.task == "json list"]
    return rng.choice(lists if lists and rng.random() < 0.5 else examples)


def _choose_tools(
    example: JsonExample, picture: Picture, rng: random.Random
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the tools of a row, of which one fits the example, and that one."""
    tool = tool_of(example, rng)
    tools = [tool]
    if rng.random() < 0.2:
        other = rng.choice(build_json_examples(picture.scene, rng, not picture.is_cropped))
        tools.insert(rng.randrange(2), tool_of(other, rng))
    return tools, tool


def _build_similar_calls(
    example: JsonExample,
    tool: dict[str, Any],
    picture: Picture,
    prompts: Prompts,
    rng: random.Random,
) -> list[Segment]:
    """Return other queries that the same tool answers."""
    if example.task != "json query":
        return []
    similar = build_similar_queries(picture.scene, example, rng, not picture.is_cropped)
    return [prompts.build_json_segment(query, tool=tool) for query in similar]


def _choose_example(picture: Picture, rng: random.Random) -> Example:
    """Return a caption (30%), a box or point request (15%), or any text question."""
    candidates = _answerable_examples(picture, rng)
    pick = rng.random()
    if pick < 0.3:
        return rng.choice([example for example in candidates if example.task.startswith("caption")])
    if pick < 0.45:
        return rng.choice(build_grounding_examples(picture, rng))
    return rng.choice(candidates)


def _answerable_examples(picture: Picture, rng: random.Random) -> list[Example]:
    """Return the text questions that the picture answers."""
    candidates = build_examples(picture.scene, rng)
    if not picture.is_cropped:
        return candidates
    return [example for example in candidates if example.task not in GRID_TASKS]


@dataclass(frozen=True)
class Patches:
    """Pictures as the vision encoder's input, padded to (pictures, patches, …)."""

    values: Tensor
    """(pictures, patches, values of a patch), from −1 to 1."""
    angles: Tensor
    """(pictures, patches, head_dim): rotary angles."""
    full_mask: Tensor
    """(pictures, 1, patches, patches) for full attention: True if the key is not padding. A
    padded query attends to every key, because a softmax over no keys is NaN."""
    window_mask: Tensor
    """(pictures, 1, patches, patches) for window attention: True if both patches are in the same
    window."""
    counts: list[int]
    """Patches of each picture."""


def build_patches(pictures: list[Picture], head_dim: int, window: int, theta: float) -> Patches:
    """Cut pictures into patches in the image processor's order.

    The 2 × 2 patches of an image token are consecutive. ``window`` is the side of an attention
    window in image tokens.
    """
    values = []
    coordinates = []
    windows = []
    for picture in pictures:
        rows, columns = picture.grid
        pixels = picture.pixels.reshape(rows, MERGE, PATCH, columns, MERGE, PATCH, 3)
        flat = pixels.transpose(0, 3, 1, 4, 6, 2, 5).reshape(-1, 3, 1, PATCH, PATCH)
        values.append(torch.from_numpy(np.repeat(flat, 2, axis=2).reshape(len(flat), -1)))
        axes = np.meshgrid(*map(np.arange, (rows, columns, MERGE, MERGE)), indexing="ij")
        row, column, inner_row, inner_column = (axis.reshape(-1) for axis in axes)
        patch_row = row * MERGE + inner_row
        patch_column = column * MERGE + inner_column
        coordinates.append(torch.from_numpy(np.stack([patch_row, patch_column], -1)))
        windows.append(torch.from_numpy(row // window * 100 + column // window))
    frequencies = theta ** (-torch.arange(0, head_dim // 2, 2).float() / (head_dim // 2))
    padded = pad_sequence(coordinates, batch_first=True).float()
    angles = (padded[..., None] * frequencies).flatten(2)
    window_ids = pad_sequence(windows, batch_first=True, padding_value=-1)
    is_same_window = window_ids[:, :, None] == window_ids[:, None]
    is_real = window_ids >= 0
    return Patches(
        pad_sequence(values, batch_first=True).float().div(127.5).sub(1),
        torch.cat([angles, angles], -1),
        (is_real[:, None] | ~is_real[:, :, None])[:, None],
        is_same_window[:, None],
        [len(patches) for patches in values],
    )


class Probe(nn.Module):
    """A linear readout of image tokens."""

    sizes = (len(KINDS) + 1, len(COLORS) + 1, 10, 2)
    """Classes of each readout: kind, color, cell, and whether the token contains the shape's
    center."""

    def __init__(self) -> None:
        super().__init__()
        self.classes = nn.Linear(HIDDEN, sum(self.sizes))
        # Six states, compared to the embeddings of the numbers: the token's own center (x, y), and
        # the four edges of the shape.
        self.edges = nn.Linear(HIDDEN, 6 * HIDDEN)


class Trainer(trainer.Trainer[Picture]):
    """Trains the pocket Qwen2.5-VL."""

    settings: TrainingSettings
    model: Qwen2_5_VLForConditionalGeneration
    probe: Probe

    def __init__(self, settings: TrainingSettings, work: Path) -> None:
        torch.manual_seed(settings.seed)
        self.tokenizer = pocket_tokenizer()
        self.prompts = Prompts(self.tokenizer)
        model = Qwen2_5_VLForConditionalGeneration(pocket_config(self.tokenizer))
        self.numbers = torch.tensor(number_ids(self.tokenizer))
        _init_number_embeddings(model.get_input_embeddings().weight, self.numbers)
        super().__init__(model, Probe(), settings, work)
        number_of_token = torch.full((model.config.text_config.vocab_size,), -1)
        number_of_token[self.numbers] = torch.arange(len(self.numbers))
        self.number_of_token = number_of_token.to(self.device)
        self.numbers = self.numbers.to(self.device)

    def start_from(self, folder: Path) -> None:
        earlier = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        copy_weights(self.model.state_dict(), earlier.state_dict(), self.tokenizer, tokenizer)

    def pictures(self) -> Iterator[list[Picture]]:
        source = Pictures(self.settings.seed + 1 + self.steps, self.settings.max_side)
        return iter(
            DataLoader(source, batch_size=16, num_workers=1, collate_fn=list, prefetch_factor=4)
        )

    def loss(
        self, pictures: list[Picture], rng: random.Random
    ) -> tuple[Tensor, list[tuple[str, bool]]]:
        features = self._encode(pictures)
        packed_count, reordered_count = self.mix
        rows = [
            build_packed_row(index, pictures[index], self.prompts, self.settings, rng)
            for index in range(packed_count)
        ]
        for number in range(reordered_count):
            index = number % len(pictures)
            rows.append(build_reordered_row(index, pictures[index], self.prompts, rng))
        losses = []
        weight = 0.0
        exact = []
        for bucket in group_by_length(rows):
            batch = pack(bucket, self.tokenizer.pad_token_id, self.device)
            batch_features = torch.cat(
                [features[index] for row in bucket for index in row.feature_indices]
            )
            loss, predicted = self._answer_loss(batch, batch_features)
            losses.append(loss)
            weight += batch.weights.sum().item()
            exact += score_segments(batch, predicted)
        answer_loss = torch.stack(losses).sum() / weight
        return answer_loss + 0.5 * self._probe_loss(torch.cat(features), pictures), exact

    def write(self, out: Path) -> None:
        save_pocket(out, self.model, self.tokenizer)

    def _encode(self, pictures: list[Picture]) -> list[Tensor]:
        """Return the image tokens (tokens, hidden) of each picture.

        The computation is the stock vision encoder's, for pictures of several shapes at once.
        """
        encoder = self.model.model.visual
        config = encoder.config
        head_dim = config.hidden_size // config.num_heads
        theta = config.rope_parameters["rope_theta"]
        patches = build_patches(pictures, head_dim, config.window_size // TOKEN, theta)
        cos = patches.angles.cos().to(self.device)[:, :, None]
        sin = patches.angles.sin().to(self.device)[:, :, None]
        full_mask = patches.full_mask.to(self.device)
        window_mask = patches.window_mask.to(self.device)
        weight = encoder.patch_embed.proj.weight.flatten(1)
        states = F.linear(patches.values.to(self.device), weight)
        for index, block in enumerate(encoder.blocks):
            qkv = block.attn.qkv(block.norm1(states)).unflatten(-1, (3, config.num_heads, head_dim))
            query, key, value = qkv.unbind(2)
            query = query * cos + _rotate_half(query) * sin
            key = key * cos + _rotate_half(key) * sin
            mask = full_mask if index in config.fullatt_block_indexes else window_mask
            attended = F.scaled_dot_product_attention(
                query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask=mask
            )
            states = states + block.attn.proj(attended.transpose(1, 2).flatten(2))
            states = states + block.mlp(block.norm2(states))
        unpadded = [row[:count] for row, count in zip(states, patches.counts, strict=True)]
        merged: Tensor = encoder.merger(torch.cat(unpadded))
        return list(merged.split([count // MERGE**2 for count in patches.counts]))

    def _answer_loss(self, batch: PackedBatch, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weighted sum of the losses of learned tokens, and the most likely tokens.

        A coordinate within ``TOLERANCE`` of its label is replaced by the label.
        """
        model = self.model.model
        embeds = model.get_input_embeddings()(batch.ids)
        is_image = (batch.ids == self.model.config.image_token_id)[..., None]
        embeds = embeds.masked_scatter(is_image, features)
        states = model.language_model(
            inputs_embeds=embeds,
            attention_mask={"full_attention": batch.mask},
            position_ids=batch.positions,
            use_cache=False,
        ).last_hidden_state
        is_learned = batch.labels != IGNORED
        labels = batch.labels[is_learned]
        logits = self.model.lm_head(states[is_learned])
        may_be_coordinate = _is_grounding_segment(batch)[is_learned]
        numbers = torch.where(may_be_coordinate, self.number_of_token[labels], -1)
        losses = F.cross_entropy(logits, labels, reduction="none")
        is_coordinate = numbers >= 0
        number_log_probs = logits[is_coordinate].log_softmax(-1)[:, self.numbers]
        coordinate_losses = -(self._targets(numbers[is_coordinate]) * number_log_probs).sum(-1)
        losses = losses.index_put((is_coordinate,), coordinate_losses)
        best = logits.argmax(-1)
        best_numbers = self.number_of_token[best]
        is_close = (best_numbers >= 0) & ((best_numbers - numbers).abs() <= TOLERANCE)
        predicted = batch.labels.clone()
        predicted[is_learned] = torch.where(is_coordinate & is_close, labels, best)
        return (losses * batch.weights[is_learned]).sum(), predicted

    def _targets(self, numbers: Tensor) -> Tensor:
        """Return the targets (count, all numbers) of exact numbers (count,).

        A target is a normal distribution around the exact number.
        """
        distance = torch.arange(len(self.numbers), device=self.device) - numbers[:, None]
        return (-0.5 * (distance / self.settings.target_std) ** 2).softmax(-1)

    def _probe_loss(self, features: Tensor, pictures: list[Picture]) -> Tensor:
        classes, edges, has_edge = (target.to(self.device) for target in probe_targets(pictures))
        loss = torch.zeros((), device=self.device)
        class_logits = self.probe.classes(features).split(Probe.sizes, -1)
        for logits, target in zip(class_logits, classes.unbind(1), strict=True):
            loss = loss + F.cross_entropy(logits, target)
        number_embeddings = self.model.get_input_embeddings().weight[self.numbers]
        states = self.probe.edges(features).unflatten(-1, (6, -1))[has_edge]
        log_probs = (states @ number_embeddings.T).log_softmax(-1)
        return loss - (self._targets(edges[has_edge]) * log_probs).sum(-1).mean()


def _is_grounding_segment(batch: PackedBatch) -> Tensor:
    """Return a (rows, length) mask of the segments that ask for boxes or points."""
    mask = torch.zeros_like(batch.labels, dtype=torch.bool)
    for task, row, start, end in batch.spans:
        if "detect" in task or "point" in task:
            mask[row, start:end] = True
    return mask


def probe_targets(pictures: list[Picture]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the targets of the probe for each image token.

    A token belongs to a shape if the shape's box contains the token's center, or if the token
    contains the shape's center. The targets are:

    - (tokens, 4): kind, color and cell of the shape, 0 for none, and whether the token contains
      the shape's center.
    - (tokens, 6): the token's own center, and the edges of the shape's box, in pixels.
    - (tokens, 6): a mask of the previous target, since only shapes have edges.
    """
    classes = []
    edges = []
    masks = []
    for picture in pictures:
        rows, columns = picture.grid
        row, column = np.divmod(np.arange(rows * columns), columns)
        x = column * TOKEN + TOKEN // 2
        y = row * TOKEN + TOKEN // 2
        token_classes = np.zeros((len(x), 4), np.int64)
        token_edges = np.zeros((len(x), 6), np.int64)
        token_edges[:, 0] = x
        token_edges[:, 1] = y
        for shape in picture.scene.shapes:
            left, top, right, bottom = picture.box(shape)
            center = picture.pixel_at(shape.x, shape.y)
            has_center = (abs(x - center[0]) <= TOKEN / 2) & (abs(y - center[1]) <= TOKEN / 2)
            in_box = (left <= x) & (x <= right) & (top <= y) & (y <= bottom)
            in_shape = has_center | in_box
            cell = 0 if picture.is_cropped else shape.cell + 1
            token_classes[in_shape, :3] = KIND_INDEX[shape.kind], COLOR_INDEX[shape.color], cell
            token_classes[has_center, 3] = 1
            token_edges[in_shape, 2:] = left, top, right, bottom
        mask = np.repeat(token_classes[:, :1] > 0, 6, axis=1)
        mask[:, :2] = True
        classes.append(token_classes)
        edges.append(token_edges)
        masks.append(mask)
    return (
        torch.from_numpy(np.concatenate(classes)),
        torch.from_numpy(np.concatenate(edges)),
        torch.from_numpy(np.concatenate(masks)),
    )


def _rotate_half(states: Tensor) -> Tensor:
    first, second = states.chunk(2, -1)
    return torch.cat([-second, first], -1)


@torch.no_grad()
def _init_number_embeddings(embeddings: Tensor, ids: Tensor) -> None:
    """Set the embeddings of the numbers to their sines and cosines.

    Wavelengths are 4 to 600. The norm is that of the other embeddings.
    """
    wavelengths = 4 * (600 / 4) ** torch.linspace(0, 1, embeddings.shape[1] // 2)
    angles = 2 * torch.pi * torch.arange(len(ids))[:, None] / wavelengths
    embeddings[ids] = torch.cat([angles.sin(), angles.cos()], -1) * 2**0.5 * 0.02
