"""Measure how often a pocket model's answers are exact, over HTTP through the whole graph.

``python -m benchmarks.pocket`` draws fresh scenes over all sizes, aspect ratios and encodings, and
asks every kind of question about each. It prints the share of exact answers with its 95% Wilson
interval. The baseline is a model that always gives the most frequent answer to that kind of
question. :mod:`benchmarks.pocket_json` asks for JSON. Models that detect and point get requests for
boxes and points as well: :mod:`benchmarks.pocket_grounding`.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from benchmarks.pocket_grounding import (
    GOALS,
    Goal,
    GroundingScores,
    GroundingTrial,
    grounding_trials,
)
from benchmarks.pocket_json import JsonScores, JsonTrial, json_trials
from benchmarks.statistics import wilson_interval
from benchmarks.target import target
from models.pocket.drawing import draw, encode
from models.pocket.scenes import LENGTHS, Scene, questions, random_scene

TARGET = 0.98
"""Minimum share of exact answers, in every row."""
IN_FLIGHT = 12
MODEL_SETTINGS = {"dtype": ("float32", "bfloat16"), "quantize": ("int8", "int4")}
EXAMPLES = 20
"""Wrong answers to print, at most."""


@dataclass(frozen=True)
class TextTrial:
    """A request for text, and its exact answer."""

    row: str
    """Row of the table that counts this trial."""
    path: str
    body: dict[str, Any]
    answer: str


def text_trials(scene: Scene, rng: random.Random, model: str, detail: str) -> Iterator[TextTrial]:
    """Yield the text trials of a scene.

    Captions use Moondream's dialect. Queries use Moondream's or OpenAI's at random.
    """
    data, media_type = encode(draw(scene, rng), rng)
    url = f"data:{media_type};base64,{base64.b64encode(data).decode()}"
    for length in LENGTHS:
        body = {"model": model, "image_url": url, "length": length}
        yield TextTrial(f"caption {length}", "/v1/caption", body, scene.caption(length))
    for question in questions(scene, rng):
        row = f"query {question.category}"
        if rng.random() < 0.5:
            body = {"model": model, "image_url": url, "question": question.text}
            yield TextTrial(row, "/v1/query", body, question.answer)
        else:
            body = chat_body(model, question.text, url, detail, text_first=rng.random() < 0.5)
            yield TextTrial(row, "/v1/chat/completions", body, question.answer)
    body = chat_body(model, "Describe this image.", url, detail, text_first=True)
    caption = scene.caption("normal")
    yield TextTrial("chat: text before picture", "/v1/chat/completions", body, caption)


def chat_body(model: str, text: str, url: str, detail: str, text_first: bool) -> dict[str, Any]:
    """Return the body of an OpenAI chat about one picture."""
    parts = [
        {"type": "text", "text": text},
        {"type": "image_url", "image_url": {"url": url, "detail": detail}},
    ]
    content = parts if text_first else parts[::-1]
    return {"model": model, "messages": [{"role": "user", "content": content}]}


def picture_part(scene: Scene, rng: random.Random, detail: str) -> dict[str, Any]:
    """Return a drawing of the scene as a part of a message."""
    data, media_type = encode(draw(scene, rng), rng)
    url = f"data:{media_type};base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url, "detail": detail}}


def answer_text(reply: dict[str, Any]) -> str:
    """Return the answer's text from a reply in either dialect."""
    if "choices" in reply:
        return str(reply["choices"][0]["message"]["content"])
    return str(reply.get("caption", reply.get("answer")))


@dataclass
class TextScores:
    """Exact answers by row, and examples of wrong ones."""

    exact: Counter[str] = field(default_factory=Counter)
    expected: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """By row, how often each exact answer was expected."""
    wrong: list[str] = field(default_factory=list)

    def add(self, trial: TextTrial, reply: dict[str, Any]) -> None:
        text = answer_text(reply)
        self.expected[trial.row][trial.answer] += 1
        self.exact[trial.row] += text == trial.answer
        if text != trial.answer:
            self.wrong.append(f"{trial.row}: got {text[:200]!r}, expected {trial.answer!r}")

    def table(self) -> Iterator[str]:
        yield "| row | exact | 95% interval | requests | most frequent answer |"
        yield "| --- | --- | --- | --- | --- |"
        for row, answers in self.expected.items():
            total = answers.total()
            share = self.exact[row] / total
            low, high = wilson_interval(self.exact[row], total)
            baseline = answers.most_common(1)[0][1] / total
            yield (f"| {row} | {share:.1%} | {low:.1%} to {high:.1%} | {total} | {baseline:.1%} |")

    @property
    def meets_target(self) -> bool:
        return all(
            self.exact[row] / answers.total() >= TARGET for row, answers in self.expected.items()
        )


async def measure(
    client: httpx.AsyncClient, model: str, scenes: int, seed: int, goal: Goal | None
) -> bool:
    """Print a model's tables; return whether every row meets its target.

    ``goal`` is the target of boxes and points; None if the model has neither.
    """
    texts = TextScores()
    jsons = JsonScores()
    grounding = None if goal is None else GroundingScores(goal)
    slots = asyncio.Semaphore(IN_FLIGHT)

    async def send(trial: TextTrial | JsonTrial | GroundingTrial) -> None:
        async with slots:
            response = await client.post(trial.path, json=trial.body)
        reply = response.raise_for_status().json()
        if isinstance(trial, TextTrial):
            texts.add(trial, reply)
        elif isinstance(trial, JsonTrial):
            jsons.add(trial, reply)
        elif grounding is not None:
            grounding.add(trial, reply)

    rng = random.Random(seed)
    for _ in range(scenes):
        scene = random_scene(rng)
        detail = rng.choice(("auto", "low", "high"))
        trials: list[TextTrial | JsonTrial | GroundingTrial] = [
            *text_trials(scene, rng, model, detail),
            *json_trials(scene, rng, model, [picture_part(scene, rng, detail)]),
        ]
        if grounding is not None:
            trials += grounding_trials(scene, random_scene(rng), rng, model)
        await asyncio.gather(*map(send, trials))
    wrong = texts.wrong[:EXAMPLES] + jsons.wrong[:EXAMPLES]
    if grounding is not None:
        wrong += grounding.wrong[:EXAMPLES]
    for line in wrong:
        print(line, file=sys.stderr)
    print(f"\n{model}, {scenes} scenes\n", *texts.table(), "", *jsons.table(), sep="\n")
    meets_targets = texts.meets_target and jsons.meets_target
    if grounding is None:
        return meets_targets
    print("", *grounding.table(), sep="\n")
    return meets_targets and grounding.meets_target


async def run(url: str, model: str | None, scenes: int, seed: int) -> int:
    """Measure one model, or all models if ``model`` is None.

    Returns the exit status: 0 if every row meets its target.
    """
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        served = (await client.get("/health")).raise_for_status().json()["models"]
        names = list(served)
        if model is not None:
            response = await client.get(f"/v1/models/{model}")
            names = [response.raise_for_status().json()["id"]]
        outcomes = []
        for name in names:
            goal = GOALS.get(served[name]["family"])
            outcomes.append(await measure(client, name, scenes, seed, goal))
    return 0 if all(outcomes) else 1


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default=None, help="measure the server at this URL")
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=20_000)
    models = parser.add_mutually_exclusive_group()
    models.add_argument("--model", default="smolvlm")
    models.add_argument("--all", action="store_true", help="measure every served model")
    for setting, choices in MODEL_SETTINGS.items():
        parser.add_argument(
            f"--{setting}", choices=choices, help="of every model; not supported with --url"
        )
    arguments = parser.parse_args()
    settings = {name: value for name in MODEL_SETTINGS if (value := getattr(arguments, name))}
    if arguments.url and settings:
        parser.error(f"--{next(iter(settings))}: not supported with --url: its server is running")

    def change(config: dict[str, Any]) -> None:
        for model_config in config["applications"][0]["args"]["models"]:
            model_config.update(settings)

    model = None if arguments.all else arguments.model
    with target(arguments.url, change) as url:
        status = asyncio.run(run(url, model, arguments.scenes, arguments.seed))
    raise SystemExit(status)


if __name__ == "__main__":
    main()
