"""JSON in the benchmark of the pocket models: values of closed schemas and of forced tools.

A query has one property of any name. A description has several, whose names say what is meant.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from benchmarks.statistics import wilson_interval
from models.pocket.scenes import CELLS, COLORS, KINDS, Scene, questions

TARGET = 0.95
"""Minimum share of answers whose values are all right, in every row."""
NAMES = (
    "answer",
    "result",
    "value",
    "it",
    "what",
    "xyz",
    "the_answer",
    "guess",
    "finalValue",
    "q1",
)
DESCRIBE = "Describe the picture as JSON."


@dataclass(frozen=True)
class JsonTrial:
    """A request for JSON, and its exact answer."""

    row: str
    path: str
    body: dict[str, Any]
    answer: dict[str, Any]


def json_trials(
    scene: Scene, rng: random.Random, model: str, parts: list[dict[str, Any]]
) -> Iterator[JsonTrial]:
    """Yield the JSON trials of a scene. ``parts`` is the picture, as parts of a message."""
    question = rng.choice([*questions(scene, rng)])
    yield _trial("JSON: query", model, parts, question.text, _one_property(question, rng), rng)
    names = rng.sample(["color", "shape", "position", "count"], rng.randint(2, 4))
    if len(scene.shapes) > 1:  # only a single shape has *the* color
        names = ["count"]
    properties = {name: _property(scene, name, rng) for name in names}
    yield _trial("JSON: description", model, parts, DESCRIBE, properties, rng)
    listed = ["shapes", "count"] if rng.random() < 0.5 else ["shapes"]
    properties = {name: _property(scene, name, rng) for name in rng.sample(listed, len(listed))}
    yield _trial("JSON: list", model, parts, DESCRIBE, properties, rng)


Property = tuple[dict[str, Any], Any]
"""A property's schema, and its right value."""


def _trial(
    row: str,
    model: str,
    parts: list[dict[str, Any]],
    text: str,
    properties: dict[str, Property],
    rng: random.Random,
) -> JsonTrial:
    """Return a trial that asks by a schema, or by a forced tool."""
    schema = {
        "type": "object",
        "properties": {name: schema for name, (schema, _) in properties.items()},
        "required": list(properties),
        "additionalProperties": False,
    }
    content = [*parts, {"type": "text", "text": text}]
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": content}]}
    if rng.random() < 0.5:
        named = {"name": "answer", "schema": schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": named}
    else:
        row += ", by a tool"
        function = {"name": "answer", "description": "The answer.", "parameters": schema}
        body["tools"] = [{"type": "function", "function": function}]
        body["tool_choice"] = {"type": "function", "function": {"name": "answer"}}
    answer = {name: value for name, (_, value) in properties.items()}
    return JsonTrial(row, "/v1/chat/completions", body, answer)


def _one_property(question: Any, rng: random.Random) -> dict[str, Property]:
    """Return the answer to a query as a property of any name."""
    category, answer = question.category, question.answer
    if category == "count":
        value: Property = ({"type": "integer"}, int(answer))
    elif category == "presence" and rng.random() < 0.5:
        value = ({"type": "boolean"}, answer == "yes")
    else:
        choices = {"presence": ("yes", "no"), "color": tuple(COLORS), "shape": (*KINDS, "none")}
        value = (_string(choices[category], rng), answer)
    return {rng.choice(NAMES): value}


def _property(scene: Scene, name: str, rng: random.Random) -> Property:
    if name == "count":
        return {"type": "integer"}, len(scene.shapes)
    if name == "shapes":
        fields = ("shape", "color", "position")
        items = {
            "type": "object",
            "properties": {field: _field(scene, 0, field, rng)[0] for field in fields},
            "required": list(fields),
            "additionalProperties": False,
        }
        numbers = range(len(scene.shapes))
        shapes = [{field: _field(scene, n, field, rng)[1] for field in fields} for n in numbers]
        return {"type": "array", "items": items}, shapes
    return _field(scene, 0, name, rng)


def _field(scene: Scene, number: int, name: str, rng: random.Random) -> Property:
    shape = scene.shapes[number]
    if name == "color":
        return _string(tuple(COLORS), rng), shape.color
    if name == "shape":
        return _string(KINDS, rng), shape.kind
    return _string(CELLS, rng), CELLS[shape.cell]


def _string(choices: tuple[str, ...], rng: random.Random) -> dict[str, Any]:
    return {"enum": list(choices)} if rng.random() < 0.5 else {"type": "string"}


@dataclass
class JsonScores:
    """Exact answers by row, and examples of wrong ones."""

    exact: Counter[str] = field(default_factory=Counter)
    total: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def add(self, trial: JsonTrial, reply: dict[str, Any]) -> None:
        message = reply["choices"][0]["message"]
        calls = message.get("tool_calls")
        text = calls[0]["function"]["arguments"] if calls else message["content"]
        try:
            is_exact = json.loads(text) == trial.answer
        except ValueError:  # cut off
            is_exact = False
        self.total[trial.row] += 1
        self.exact[trial.row] += is_exact
        if not is_exact:
            self.wrong.append(f"{trial.row}: got {text[:200]}, expected {json.dumps(trial.answer)}")

    def table(self) -> Iterator[str]:
        yield "| row | exact | 95% interval | requests |"
        yield "| --- | --- | --- | --- |"
        for row in sorted(self.total):
            exact, total = self.exact[row], self.total[row]
            low, high = wilson_interval(exact, total)
            yield f"| {row} | {exact / total:.1%} | {low:.1%} to {high:.1%} | {total} |"

    @property
    def meets_target(self) -> bool:
        return all(self.exact[row] / total >= TARGET for row, total in self.total.items())
