"""Training rows of the pocket Qwen2.5-VL: prompts, questions and answers about a picture."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from training.json_answers import (
    JsonExample,
    build_json_examples,
    build_similar_queries,
    encode_answer,
    schema_prompt,
    tool_of,
    write_answer,
)
from training.prompts import DETECT_PROMPT, POINT_PROMPT, SYSTEM_PROMPTS
from training.qwen2_5_vl_checkpoint import TOOL_CALL
from training.qwen2_5_vl_pictures import Picture
from training.rows import Row, Segment
from training.trainer import Example, TrainingSettings, build_examples
from training.windows import GRID_TASKS, random_subject


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
        self.video_id = tokenizer.convert_tokens_to_ids("<|video_pad|>")

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
    if pick < 0.52:
        return build_tool_row(index, picture, prompts, rng)
    if pick < 0.6:
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
    return rng.choice(lists if lists and rng.random() < 0.75 else examples)


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
