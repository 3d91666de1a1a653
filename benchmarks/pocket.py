"""How often a pocket model is exactly right, over HTTP through the whole graph.

``python -m benchmarks.pocket`` draws fresh scenes over all sizes, aspect ratios and encodings, asks
every kind of question about each, and prints the share of exact answers with its 95% Wilson
interval. The baseline is what the most frequent answer to that kind of question would reach. Models
that can detect and point are asked for places as well: :mod:`benchmarks.pocket_grounding`.
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
from math import sqrt
from typing import Any

import httpx

from benchmarks.pocket_grounding import GOALS, Goal, Places, Search, searches
from benchmarks.target import target
from models.pocket.drawing import draw, encode
from models.pocket.scenes import LENGTHS, Scene, questions, random_scene

TARGET = 0.98
IN_FLIGHT = 12


@dataclass(frozen=True)
class Trial:
    """One request: its row in the table, path, body, and the exact answer."""

    row: str
    path: str
    body: dict[str, Any]
    answer: str


def trials(scene: Scene, rng: random.Random, model: str, detail: str) -> Iterator[Trial]:
    """Captions through Moondream's dialect; queries through Moondream's and OpenAI's by turns."""
    data, media_type = encode(draw(scene, rng), rng)
    url = f"data:{media_type};base64,{base64.b64encode(data).decode()}"
    for length in LENGTHS:
        body = {"model": model, "image_url": url, "length": length}
        yield Trial(f"caption {length}", "/v1/caption", body, scene.caption(length))
    for question in questions(scene, rng):
        if rng.random() < 0.5:
            body = {"model": model, "image_url": url, "question": question.text}
            yield Trial(f"query {question.kind}", "/v1/query", body, question.answer)
        else:
            body = chat_body(model, question.text, url, detail, text_first=rng.random() < 0.5)
            yield Trial(f"query {question.kind}", "/v1/chat/completions", body, question.answer)
    body = chat_body(model, "Describe this image.", url, detail, text_first=True)
    yield Trial("chat: text before picture", "/v1/chat/completions", body, scene.caption("normal"))


def chat_body(model: str, text: str, url: str, detail: str, text_first: bool) -> dict[str, Any]:
    parts = [
        {"type": "text", "text": text},
        {"type": "image_url", "image_url": {"url": url, "detail": detail}},
    ]
    content = parts if text_first else parts[::-1]
    return {"model": model, "messages": [{"role": "user", "content": content}]}


def text_of(reply: dict[str, Any]) -> str:
    if "choices" in reply:
        return str(reply["choices"][0]["message"]["content"])
    return str(reply.get("caption", reply.get("answer")))


def wilson(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """The 95% interval of a share (Wilson 1927)."""
    share = right / total
    middle = share + z * z / (2 * total)
    spread = z * sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, middle - spread) / scale, (middle + spread) / scale


@dataclass
class Texts:
    """How often each row's answers are exact, and examples of what was wrong."""

    right: Counter[str] = field(default_factory=Counter)
    answers: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    wrong: list[str] = field(default_factory=list)

    def add(self, trial: Trial, reply: dict[str, Any]) -> None:
        said = text_of(reply)
        self.answers[trial.row][trial.answer] += 1
        self.right[trial.row] += said == trial.answer
        if said != trial.answer:
            self.wrong.append(f"{trial.row}: {said!r} is not {trial.answer!r}")

    def table(self) -> Iterator[str]:
        yield "| row | exact | 95% interval | asked | most frequent answer |"
        yield "| --- | --- | --- | --- | --- |"
        for row, given in self.answers.items():
            total = given.total()
            low, high = wilson(self.right[row], total)
            baseline = given.most_common(1)[0][1] / total
            yield f"| {row} | {self.right[row] / total:.1%} | {low:.1%} to {high:.1%} | {total} | {baseline:.1%} |"

    @property
    def reached(self) -> bool:
        return all(self.right[row] / given.total() >= TARGET for row, given in self.answers.items())


async def measure(
    client: httpx.AsyncClient, model: str, scenes: int, seed: int, goal: Goal | None
) -> bool:
    """Prints a model's tables; whether every row reaches its target. ``goal``: for boxes and
    points, where it can."""
    texts, places = Texts(), None if goal is None else Places(goal)
    in_flight = asyncio.Semaphore(IN_FLIGHT)

    async def ask(asked: Trial | Search) -> None:
        async with in_flight:
            response = await client.post(asked.path, json=asked.body)
        reply = response.raise_for_status().json()
        if isinstance(asked, Trial):
            texts.add(asked, reply)
        elif places is not None:
            places.add(asked, reply)

    rng = random.Random(seed)
    for _ in range(scenes):
        scene = random_scene(rng)
        asked: list[Trial | Search] = [
            *trials(scene, rng, model, rng.choice(("auto", "low", "high")))
        ]
        if places is not None:
            asked += searches(scene, random_scene(rng), rng, model)
        await asyncio.gather(*map(ask, asked))
    for line in texts.wrong[:20] + (places.wrong[:20] if places else []):
        print(line, file=sys.stderr)
    print(f"\n{model}, {scenes} scenes\n", *texts.table(), sep="\n")
    if places is None:
        return texts.reached
    print("", *places.table(), sep="\n")
    return texts.reached and places.reached


async def run(url: str, model: str | None, scenes: int, seed: int) -> int:
    """Measures one model, or all where none is named; the exit status is 0 where every row reaches
    its target."""
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        served = (await client.get("/health")).raise_for_status().json()["models"]
        chosen = list(served)
        if model is not None:
            found = await client.get(f"/v1/models/{model}")
            chosen = [found.raise_for_status().json()["id"]]
        reached = []
        for name in chosen:
            reached.append(
                await measure(client, name, scenes, seed, GOALS.get(served[name]["family"]))
            )
    return 0 if all(reached) else 1


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default=None, help="a server that runs already")
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=20_000)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", default="smolvlm")
    which.add_argument("--all", action="store_true", help="every model that is served")
    parser.add_argument(
        "--quantize", choices=("int8",), help="how a server of its own keeps the weights"
    )
    arguments = parser.parse_args()
    if arguments.url and arguments.quantize:
        parser.error("--quantize: the server at --url has its own configuration")

    def quantize(config: dict[str, Any]) -> None:
        for served in config["applications"][0]["args"]["models"]:
            served["quantize"] = arguments.quantize

    model = None if arguments.all else arguments.model
    with target(arguments.url, quantize) as url:
        status = asyncio.run(run(url, model, arguments.scenes, arguments.seed))
    raise SystemExit(status)


if __name__ == "__main__":
    main()
