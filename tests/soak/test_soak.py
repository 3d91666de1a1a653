"""Mixed traffic for minutes: every request is accounted for, and memory stays flat.

Run it with ``make soak``; SOAK_MINUTES sets the duration.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.pocket.scenes import LENGTHS, Scene
from testing.checkpoints import slow_smolvlm
from testing.scenes import draw_scene
from tests.serve.conftest import read_metric, server_processes, serving

MINUTES = float(os.environ.get("SOAK_MINUTES", "10"))
IN_FLIGHT = 16
"""Concurrent requests. One replica can take them all: the memory of a second replica would count
as growth."""
MAX_GROWTH_MB = 150
MAX_WRONG = 0.05
"""Wrong captions of each model, as a fraction of right ones; ``benchmarks/pocket.py`` measures the
accuracy itself."""
CHAT = "/v1/chat/completions"
SCHEMA = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "green", "blue"]}},
    "required": ["color"],
}
EXPECTED_OUTCOMES = {
    "right",
    "wrong",
    "answered",
    "ended at max_tokens",
    "disconnected",
    "invalid: refused",
    "503",
}


@dataclass(frozen=True)
class Visit:
    """A client, a model, and the scene that the client asks about."""

    client: httpx.AsyncClient
    model: str
    scene: Scene
    data: bytes
    url: str
    rng: random.Random

    def chat(self, text: str = "Describe this image.", **parameters: Any) -> dict[str, Any]:
        parts = [
            {"type": "image_url", "image_url": {"url": self.url}},
            {"type": "text", "text": text},
        ]
        return {"model": self.model, "messages": [{"role": "user", "content": parts}], **parameters}

    async def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return await self.client.post(path, json=body)


Outcome = httpx.Response | str
"""Outcome of a visit: the response if its status is an error, or else the outcome's name."""


async def full_caption(visit: Visit) -> Outcome:
    length = visit.rng.choice(LENGTHS)
    body = {"model": visit.model, "image_url": visit.url, "length": length}
    response = await visit.post("/v1/caption", body)
    if response.status_code != 200:
        return response
    return "right" if response.json()["caption"] == visit.scene.caption(length) else "wrong"


def outcome_of_completion(response: httpx.Response) -> Outcome:
    if response.status_code != 200:
        return response
    is_cut = response.json()["choices"][0]["finish_reason"] == "length"
    return "ended at max_tokens" if is_cut else "answered"


async def short(visit: Visit) -> Outcome:
    body = visit.chat(max_tokens=visit.rng.randint(1, 4))
    return outcome_of_completion(await visit.post(CHAT, body))


async def endless(visit: Visit) -> Outcome:
    """Ask the cramped model: its answers don't end before ``max_tokens``."""
    body = visit.chat(max_tokens=visit.rng.randint(50, 600))
    return outcome_of_completion(await visit.post(CHAT, {**body, "model": "cramped"}))


async def stream(visit: Visit) -> Outcome:
    response = await visit.post(CHAT, visit.chat(stream=True))
    if response.status_code != 200:
        return response
    return "answered" if response.text.rstrip().endswith("data: [DONE]") else "broken stream"


async def disconnect_while_streaming(visit: Visit) -> Outcome:
    max_lines = visit.rng.randint(0, 12)
    async with visit.client.stream("POST", CHAT, json=visit.chat(stream=True)) as response:
        if response.status_code != 200:
            return response
        lines = 0
        async for _ in response.aiter_lines():
            lines += 1
            if lines > max_lines:
                break
    return "disconnected"


async def disconnect_while_waiting(visit: Visit) -> Outcome:
    try:
        async with asyncio.timeout(visit.rng.uniform(0, 0.3)):
            response = await visit.post(CHAT, visit.chat("Describe this image in detail."))
    except TimeoutError:
        return "disconnected"
    return response if response.status_code != 200 else "answered"


async def locate(visit: Visit) -> Outcome:
    """Detect or point without a model's name: a model that supports the task answers."""
    path, key = visit.rng.choice((("/v1/detect", "objects"), ("/v1/point", "points")))
    subject = visit.rng.choice(("shape", "circle", visit.scene.shapes[0].name))
    response = await visit.post(path, {"image_url": visit.url, "object": subject})
    if response.status_code != 200:
        return response
    for finding in response.json()[key]:
        if not all(0 <= coordinate <= 1 for coordinate in finding.values()):
            return "a coordinate outside of the picture"
    return "answered"


async def schema(visit: Visit) -> Outcome:
    response_format = {"type": "json_schema", "json_schema": {"name": "shape", "schema": SCHEMA}}
    body = visit.chat(
        "What color is the circle?",
        response_format=response_format,
        max_tokens=200,
        temperature=0.7,
    )
    response = await visit.post(CHAT, body)
    if response.status_code != 200:
        return response
    (choice,) = response.json()["choices"]
    if choice["finish_reason"] == "length":
        return "ended at max_tokens"
    answer = json.loads(choice["message"]["content"])
    return "answered" if answer["color"] in ("red", "green", "blue") else "not the schema"


async def several_answers(visit: Visit) -> Outcome:
    response = await visit.post(
        CHAT, visit.chat(n=2, temperature=1.0, top_p=0.9, seed=visit.rng.randrange(1000))
    )
    if response.status_code != 200:
        return response
    return "answered" if len(response.json()["choices"]) == 2 else "an answer is missing"


async def invalid(visit: Visit) -> Outcome:
    fault = visit.rng.choice(("half a picture", "no picture", "a wrong parameter"))
    if fault == "half a picture":
        half = visit.data[: len(visit.data) // 2]
        response = await visit.client.post(
            "/v1/caption", files={"file": half}, data={"model": visit.model}
        )
    elif fault == "no picture":
        response = await visit.post(
            "/v1/caption", {"model": visit.model, "image_url": "https://example.com/a.png"}
        )
    else:
        response = await visit.post(CHAT, visit.chat(temperature=-1))
    is_refused = 400 <= response.status_code < 500
    return "invalid: refused" if is_refused else f"invalid: {response.status_code}"


SCENARIOS: tuple[Callable[[Visit], Awaitable[Outcome]], ...] = (
    full_caption,
    full_caption,
    short,
    endless,
    stream,
    disconnect_while_streaming,
    disconnect_while_waiting,
    locate,
    schema,
    several_answers,
    invalid,
)


async def traffic(
    url: str, until: float, sent: Counter[str], outcomes: Counter[tuple[str, str]], seed: int
) -> None:
    """Run one client's visits to all models, one after another, until the time ``until``."""
    rng = random.Random(seed)
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        while time.monotonic() < until:
            model = rng.choice(("moondream", "smolvlm", "qwen2.5-vl"))
            scene, data, picture = draw_scene(
                rng.randrange(10**6), max_side=rng.choice((200, 600, 1024))
            )
            scenario = rng.choice(SCENARIOS)
            sent[model] += 1
            outcome = await scenario(Visit(client, model, scene, data, picture, rng))
            if isinstance(outcome, httpx.Response):
                status = outcome.status_code
                outcome = "503" if status == 503 else f"{scenario.__name__}: {status}"
            outcomes[model, outcome] += 1


def memory_mb() -> dict[str, float]:
    """Return the memory of each of the server's processes by title and id, in MB.

    A shared page counts in equal parts for its processes (``Pss``): all of them map the object
    store, which touches more of its pages for a while.
    """
    sizes = {}
    for pid in server_processes():
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
            title = command.decode(errors="replace").strip()
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        proportional = next(line for line in rollup.splitlines() if line.startswith("Pss:"))
        sizes[f"{title[:50]} {pid}"] = int(proportional.split()[1]) / 1024
    return sizes


def growth(before: dict[str, float], after: dict[str, float]) -> list[tuple[str, float]]:
    """Return the five processes that have grown most, and by how many MB."""
    differences = [(title, size - before.get(title, 0.0)) for title, size in after.items()]
    return sorted(differences, key=lambda difference: -difference[1])[:5]


async def become_idle() -> bool:
    """Return whether the metrics show engines without requests within 40 polls."""
    for _ in range(40):
        gauges = ("ray_raylens_engine_running", "ray_raylens_engine_waiting")
        if not any([await asyncio.to_thread(read_metric, gauge) for gauge in gauges]):
            return True
        await asyncio.sleep(1)
    return False


def with_small_caches(config: dict[str, Any]) -> None:
    """Shrink the caches: they are full before memory is first measured, and add no growth."""
    for model in config["applications"][0]["args"]["models"]:
        model.update(feature_cache="4MiB", prefix_cache="8MiB")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    with serving(slow_smolvlm(tmp_path), with_small_caches) as url:
        yield url


@pytest.mark.soak
async def test_mixed_traffic(server: str) -> None:
    sent: Counter[str] = Counter()
    outcomes: Counter[tuple[str, str]] = Counter()
    sizes: list[dict[str, float]] = []
    for quarter in range(4):
        until = time.monotonic() + MINUTES * 60 / 4
        seeds = range(100 * quarter, 100 * quarter + IN_FLIGHT)
        await asyncio.gather(*(traffic(server, until, sent, outcomes, seed) for seed in seeds))
        sizes.append(memory_mb())
        total = sum(sizes[-1].values())
        minutes = MINUTES * (quarter + 1) / 4
        print(f"after {minutes:.1f} minutes: {total:.0f} MB, {dict(outcomes)}", flush=True)
        print(f"most growth: {growth(sizes[0], sizes[-1])}", flush=True)
    assert {outcome for _, outcome in outcomes} <= EXPECTED_OUTCOMES
    for model, count in sent.items():
        assert count == sum(times for (name, _), times in outcomes.items() if name == model)
    total_growth = sum(sizes[-1].values()) - sum(sizes[0].values())
    assert total_growth < MAX_GROWTH_MB, growth(sizes[0], sizes[-1])
    assert await become_idle()
    for model in sent:
        assert outcomes[model, "wrong"] <= MAX_WRONG * outcomes[model, "right"], model
