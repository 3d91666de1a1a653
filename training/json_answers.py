"""Questions that are answered by JSON, for training.

Structured output forces the names of an answer's properties, which the model can't know. It learns
everything else: what a grammar forbids, it can't choose anyway.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerFast

from models.pocket.scenes import (
    CELLS,
    COLORS,
    KINDS,
    Scene,
    Shape,
    ask_color,
    ask_count,
    ask_presence,
    ask_shape,
)

DESCRIBE = "Describe the picture as JSON."
DESCRIBE_VARIANTS = (DESCRIBE, DESCRIBE, DESCRIBE, "Describe the image as JSON.", "Describe it.")
NAMES: dict[str, tuple[str, ...]] = {
    "color": ("color", "color", "colour", "main_color", "shape_color", "Color", "colorName"),
    "shape": ("shape", "shape", "kind", "shape_type", "form", "Shape", "shapeKind", "figure"),
    "position": ("position", "position", "location", "place", "cell", "where", "Position"),
    "count": ("count", "count", "number_of_shapes", "num_shapes", "shape_count", "total", "n"),
    "shapes": ("shapes", "shapes", "objects", "items", "all_shapes", "figures", "shape_list"),
}
"""Names of properties, by what they mean."""
ANSWER_NAMES = ("answer", "result", "value", "response", "output", "reply", "text", "data")
_END_OF_LIST = re.compile(r"(?<=})(?=])")
_SYLLABLES = tuple(
    [
        "ba",
        "co",
        "di",
        "fu",
        "ga",
        "he",
        "ki",
        "lo",
        "mu",
        "na",
        "or",
        "pe",
        "qua",
        "re",
        "si",
        "ta",
        "um",
        "ve",
        "xi",
        "yo",
        "za",
    ]
)


class Property(NamedTuple):
    """A property of a JSON answer."""

    name: str
    meaning: str
    """A key of ``NAMES``, or ``flag`` for yes or no."""
    value: Any


@dataclass(frozen=True)
class JsonExample:
    """A question, and its answer as an object of these properties."""

    task: str
    question: str
    properties: tuple[Property, ...]


class Answer(NamedTuple):
    """An answer's text, and the ranges of characters that the model can't know."""

    text: str
    unknown: tuple[tuple[int, int], ...]


def build_json_examples(
    scene: Scene, rng: random.Random, has_grid: bool = True
) -> list[JsonExample]:
    """Return a query with one property, and two descriptions with several.

    Without ``has_grid``, none of them is about the cells of the grid.
    """
    meanings = ["color", "shape", "count"]
    if has_grid:
        meanings.append("position")
    examples = [
        _query(scene, rng, has_grid),
        _description(scene, rng.sample(meanings, rng.randint(1, len(meanings))), rng),
    ]
    if has_grid:
        examples.append(build_json_list(scene, rng))
    return examples


def build_json_list(scene: Scene, rng: random.Random) -> JsonExample:
    """Return a description with a list of all shapes among its properties."""
    others = rng.sample(["color", "shape", "count", "position"], rng.randrange(3))
    return _description(scene, _shuffle(["shapes", *others], rng), rng)


def build_similar_queries(
    scene: Scene, example: JsonExample, rng: random.Random, has_grid: bool = True
) -> list[JsonExample]:
    """Return other queries that the schema of the query ``example`` fits."""
    (entry,) = example.properties
    result = {example.question: example}
    for _ in range(8):
        query = _query(scene, rng, has_grid)
        meaning, value = query.properties[0][1:]
        if meaning == entry.meaning and type(value) is type(entry.value):
            renamed = Property(entry.name, meaning, value)
            result.setdefault(query.question, replace(query, properties=(renamed,)))
    return list(result.values())[1:]


def _shuffle(meanings: list[str], rng: random.Random) -> list[str]:
    return rng.sample(meanings, len(meanings))


def _query(scene: Scene, rng: random.Random, has_grid: bool) -> JsonExample:
    """Return a query of the scenes' table with one property of any name."""
    questions = [ask_count(scene), ask_presence(scene, rng, rng.random() < 0.5)]
    color = ask_color(scene, rng)
    if color is not None:
        questions += [color, color]
    if has_grid:
        cell = rng.choice([shape.cell for shape in scene.shapes] + [rng.randrange(9)])
        questions += [ask_shape(scene, rng, cell)] * 2
    question = rng.choice(questions)
    meaning = question.category
    value: Any = question.answer
    if meaning == "count":
        value = int(value)
    elif meaning == "presence":
        meaning = "flag"
        value = rng.choice((value, value == "yes"))
    name = _any_name(meaning, rng)
    return JsonExample("json query", question.text, (Property(name, meaning, value),))


def _any_name(meaning: str, rng: random.Random) -> str:
    pick = rng.random()
    if pick < 0.35 and meaning in NAMES:
        return rng.choice(NAMES[meaning])
    if pick < 0.7:
        return rng.choice(ANSWER_NAMES)
    if pick < 0.75:
        return rng.choice(rng.choice(list(NAMES.values())))
    return "".join(rng.choices(_SYLLABLES, k=rng.randint(1, 4)))


def _description(scene: Scene, meanings: Sequence[str], rng: random.Random) -> JsonExample:
    """Return a description. Color, shape and position are those of the first shape."""
    first = scene.shapes[0]
    properties = [
        Property(rng.choice(NAMES[meaning]), meaning, _value(scene, first, meaning, rng))
        for meaning in meanings
    ]
    task = "json list" if "shapes" in meanings else "json fields"
    return JsonExample(task, rng.choice(DESCRIBE_VARIANTS[:4]), tuple(properties))


def _value(scene: Scene, shape: Shape, meaning: str, rng: random.Random) -> Any:
    if meaning == "count":
        return len(scene.shapes)
    if meaning != "shapes":
        return _shape_value(shape, meaning)
    meanings = ["shape", "color", "position"]
    if rng.random() < 0.3:
        rng.shuffle(meanings)
    names = {meaning: meaning for meaning in meanings}
    if rng.random() < 0.2:
        names = {meaning: rng.choice(NAMES[meaning]) for meaning in meanings}
    return [
        {names[meaning]: _shape_value(each, meaning) for meaning in meanings}
        for each in scene.shapes
    ]


def _shape_value(shape: Shape, meaning: str) -> str:
    return {"color": shape.color, "shape": shape.kind, "position": CELLS[shape.cell]}[meaning]


def write_answer(example: JsonExample, opening: str = "", closing: str = "") -> Answer:
    """Return the answer as JSON between ``opening``, which the model can't know, and
    ``closing``."""
    writer = _Writer(opening)
    writer.write_object({entry.name: entry.value for entry in example.properties})
    return Answer(writer.text + closing, ((0, len(opening)), *writer.names))


class _Writer:
    """Writes JSON as ``json.dumps`` does, and notes the ranges of the names."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.names: list[tuple[int, int]] = []

    def write_object(self, value: dict[str, Any]) -> None:
        for index, (name, member) in enumerate(value.items()):
            self.text += ', "' if index else '{"'
            start = len(self.text)
            self.text += name
            self.names.append((start, len(self.text)))
            self.text += '": '
            self._write(member)
        self.text += "}"

    def _write(self, value: Any) -> None:
        if not isinstance(value, list):
            self.text += json.dumps(value)
            return
        for index, item in enumerate(value):
            self.text += ", " if index else "["
            self.write_object(item)
        self.text += "]"


def encode_answer(
    answer: Answer, tokenizer: PreTrainedTokenizerFast
) -> tuple[list[int], list[bool]]:
    """Return the answer's token ids, and whether the loss includes each of them.

    No token spans the end of a list. Otherwise, the end of the last item would be one token if the
    list is the last property, and another one if not, which the model can't know. A grammar allows
    both, and after the wrong one the model would go on with the list.
    """
    ids: list[int] = []
    learn: list[bool] = []
    offset = 0
    for part in _END_OF_LIST.split(answer.text):
        encoded = tokenizer(part, add_special_tokens=False, return_offsets_mapping=True)
        ids += encoded["input_ids"]
        learn += [
            not any(
                offset + start < last and first < offset + end for first, last in answer.unknown
            )
            for start, end in encoded["offset_mapping"]
        ]
        offset += len(part)
    return ids, learn


def build_schema(properties: Sequence[Property], rng: random.Random) -> dict[str, Any]:
    """Return a JSON schema of the properties, in the style of one of the common libraries."""
    has_titles = rng.random() < 0.5
    schema: dict[str, Any] = {
        "properties": {
            entry.name: _property_schema(entry, has_titles, rng) for entry in properties
        },
        "required": [entry.name for entry in properties],
        "type": "object",
    }
    if has_titles:
        schema["title"] = "Answer"
    if rng.random() < 0.5:
        schema["additionalProperties"] = False
    if rng.random() < 0.5:
        schema = dict(reversed(schema.items()))
    return schema


def _property_schema(entry: Property, has_titles: bool, rng: random.Random) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    if has_titles:
        schema["title"] = entry.name.replace("_", " ").title()
    if rng.random() < 0.2:
        schema["description"] = f"The {entry.meaning}"
    if isinstance(entry.value, bool):
        schema["type"] = "boolean"
    elif isinstance(entry.value, int):
        schema["type"] = "integer"
    elif isinstance(entry.value, list):
        names = list(entry.value[0])
        schema["type"] = "array"
        schema["items"] = {
            "type": "object",
            "properties": {name: {"type": "string"} for name in names},
            "required": names,
        }
    else:
        if rng.random() < 0.4:
            schema["enum"] = list(_choices(entry.meaning))
        schema["type"] = "string"
    return schema


def _choices(meaning: str) -> Sequence[str]:
    choices = {"color": tuple(COLORS), "position": CELLS, "flag": ("yes", "no")}
    return choices.get(meaning, (*KINDS, "none"))


def tool_of(example: JsonExample, rng: random.Random) -> dict[str, Any]:
    """Return a function in OpenAI's format whose parameters are the example's properties."""
    names = ("answer", "final_result", "Scene", "Picture", "extract", "describe_picture", "Output")
    function: dict[str, Any] = {"name": rng.choice(names)}
    if rng.random() < 0.7:
        function["description"] = rng.choice(
            ("The final answer.", "Describes the picture.", "Extracts what the picture shows.")
        )
    function["parameters"] = build_schema(example.properties, rng)
    return {"type": "function", "function": function}


def schema_prompt(example: JsonExample, rng: random.Random) -> str:
    """Return a system prompt that asks for the example's properties."""
    request = rng.choice(("Answer as JSON.", "Return a JSON object with this schema:"))
    return f"{request} {json.dumps(build_schema(example.properties, rng))}"


def json_corpus() -> list[str]:
    """Return text that makes the punctuation and the words of JSON one token each."""
    rng = random.Random(0)
    counts = Counter(
        {
            '{"shape": "circle", "color": "red", "position": "top left"}': 100,
            '[{"shape": "circle", "color": "red"}, {"shape": "square"}]}': 100,
            '{"count": 1, "shapes": [], "answer": true}': 100,
            '{"count": 1, "answer": false, "shapes": [{"position": "center"}]}': 100,
            '{"yes": "yes", "no": "no", "none": "none"}, "a": 2}': 100,
            DESCRIBE: 100,
        }
    )
    lines = [line for line, count in counts.items() for _ in range(count)]
    words = (*COLORS, *KINDS, *(word for cell in CELLS for word in cell.split()), "none")
    lines += [f'"{word}", "{word}"}}' for word in words] * 60
    names = {name for names in NAMES.values() for name in names} | set(ANSWER_NAMES)
    lines += [f'{{"{name}": "' for name in sorted(names)] * 20
    for _ in range(60):
        name = rng.choice(ANSWER_NAMES)
        properties = (Property(name, "color", "red"), Property("count", "count", 2))
        tool = tool_of(JsonExample("", "", properties), rng)
        lines.append(json.dumps(tool))
    return lines
