"""Minutes of mixed traffic: every request accounted for, memory flat. ``make soak``; SOAK_MINUTES
sets how long."""

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
from testing.checkpoints import random_smolvlm
from testing.scenes import drawn
from tests.serve.conftest import measured, processes, serving

MINUTES = float(os.environ.get("SOAK_MINUTES", "10"))
IN_FLIGHT = 16
"""No more than one replica's places, so that none is added, whose memory would count as growth."""
GROWTH_MB = 150
WRONG = 0.05
"""Of whole captions, by each model; ``benchmarks/pocket.py`` measures the real share."""
CHAT = "/v1/chat/completions"
SCHEMA = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "green", "blue"]}},
    "required": ["color"],
}
ACCOUNTED = {
    "right",
    "wrong",
    "answered",
    "cut at max_tokens",
    "left",
    "bad: refused",
    "told to come back",
}


@dataclass(frozen=True)
class Visit:
    """What one client is about to ask about."""

    client: httpx.AsyncClient
    model: str
    scene: Scene
    data: bytes
    url: str
    rng: random.Random

    def chat(self, text: str = "Describe this image.", **more: Any) -> dict[str, Any]:
        parts = [
            {"type": "image_url", "image_url": {"url": self.url}},
            {"type": "text", "text": text},
        ]
        return {"model": self.model, "messages": [{"role": "user", "content": parts}], **more}

    async def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return await self.client.post(path, json=body)


Answer = httpx.Response | str
"""What came of a visit: a response that says no, or the outcome's name."""


async def whole(visit: Visit) -> Answer:
    length = visit.rng.choice(LENGTHS)
    body = {"model": visit.model, "image_url": visit.url, "length": length}
    response = await visit.post("/v1/caption", body)
    if response.status_code != 200:
        return response
    return "right" if response.json()["caption"] == visit.scene.caption(length) else "wrong"


async def short(visit: Visit) -> Answer:
    response = await visit.post(CHAT, visit.chat(max_tokens=visit.rng.randint(1, 4)))
    if response.status_code != 200:
        return response
    return (
        "cut at max_tokens"
        if response.json()["choices"][0]["finish_reason"] == "length"
        else "answered"
    )


async def endless(visit: Visit) -> Answer:
    """By the cramped model, which has learned nothing and so goes on, where it has room."""
    response = await visit.post(
        CHAT, {**visit.chat(max_tokens=visit.rng.randint(50, 600)), "model": "cramped"}
    )
    if response.status_code != 200:
        return response
    return (
        "cut at max_tokens"
        if response.json()["choices"][0]["finish_reason"] == "length"
        else "answered"
    )


async def streamed(visit: Visit) -> Answer:
    response = await visit.post(CHAT, visit.chat(stream=True))
    if response.status_code != 200:
        return response
    return "answered" if response.text.rstrip().endswith("data: [DONE]") else "broken stream"


async def leave_a_stream(visit: Visit) -> Answer:
    until = visit.rng.randint(0, 12)
    async with visit.client.stream("POST", CHAT, json=visit.chat(stream=True)) as response:
        if response.status_code != 200:
            return response
        lines = 0
        async for _ in response.aiter_lines():
            lines += 1
            if lines > until:
                break
    return "left"


async def leave_while_waiting(visit: Visit) -> Answer:
    try:
        async with asyncio.timeout(visit.rng.uniform(0, 0.3)):
            response = await visit.post(CHAT, visit.chat("Describe this image in detail."))
    except TimeoutError:
        return "left"
    return response if response.status_code != 200 else "answered"


async def locate(visit: Visit) -> Answer:
    """No model named: the one that can answers."""
    path, key = visit.rng.choice((("/v1/detect", "objects"), ("/v1/point", "points")))
    subject = visit.rng.choice(("shape", "circle", visit.scene.shapes[0].name))
    response = await visit.post(path, {"image_url": visit.url, "object": subject})
    if response.status_code != 200:
        return response
    places = [coordinate for place in response.json()[key] for coordinate in place.values()]
    return "answered" if all(0 <= coordinate <= 1 for coordinate in places) else "a place outside"


async def schema(visit: Visit) -> Answer:
    wanted = {"type": "json_schema", "json_schema": {"name": "shape", "schema": SCHEMA}}
    body = visit.chat(
        "What color is the circle?", response_format=wanted, max_tokens=200, temperature=0.7
    )
    response = await visit.post(CHAT, body)
    if response.status_code != 200:
        return response
    (choice,) = response.json()["choices"]
    if choice["finish_reason"] == "length":
        return "cut at max_tokens"
    answer = json.loads(choice["message"]["content"])
    return "answered" if answer["color"] in ("red", "green", "blue") else "off the schema"


async def several(visit: Visit) -> Answer:
    response = await visit.post(
        CHAT, visit.chat(n=2, temperature=1.0, top_p=0.9, seed=visit.rng.randrange(1000))
    )
    if response.status_code != 200:
        return response
    return "answered" if len(response.json()["choices"]) == 2 else "an answer is missing"


async def bad(visit: Visit) -> Answer:
    kind = visit.rng.choice(("half a picture", "no picture", "a wrong parameter"))
    if kind == "half a picture":
        half = visit.data[: len(visit.data) // 2]
        response = await visit.client.post(
            "/v1/caption", files={"file": half}, data={"model": visit.model}
        )
    elif kind == "no picture":
        response = await visit.post(
            "/v1/caption", {"model": visit.model, "image_url": "https://example.com/a.png"}
        )
    else:
        response = await visit.post(CHAT, visit.chat(temperature=-1))
    refused = 400 <= response.status_code < 500
    return "bad: refused" if refused else f"bad: {response.status_code}"


KINDS: tuple[Callable[[Visit], Awaitable[Answer]], ...] = (
    whole,
    whole,
    short,
    endless,
    streamed,
    leave_a_stream,
    leave_while_waiting,
    locate,
    schema,
    several,
    bad,
)


async def traffic(
    url: str, until: float, sent: Counter[str], outcomes: Counter[tuple[str, str]], seed: int
) -> None:
    """One client's visits, one after another, to all models."""
    rng = random.Random(seed)
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        while time.monotonic() < until:
            model = rng.choice(("moondream", "smolvlm", "qwen2.5-vl"))
            scene, data, picture = drawn(
                rng.randrange(10**6), max_side=rng.choice((200, 600, 1024))
            )
            kind = rng.choice(KINDS)
            sent[model] += 1
            came = await kind(Visit(client, model, scene, data, picture, rng))
            if isinstance(came, httpx.Response):
                came = (
                    "told to come back"
                    if came.status_code == 503
                    else f"{kind.__name__}: {came.status_code}"
                )
            outcomes[model, came] += 1


def memory_mb() -> dict[str, float]:
    """Of each of the server's processes, by title and id. A page that several share counts for each
    by its part: the object store, which all map, touches more of its pages for a while."""
    sizes = {}
    for pid in processes():
        try:
            title = (
                Path(f"/proc/{pid}/cmdline")
                .read_bytes()
                .replace(b"\0", b" ")
                .decode(errors="replace")
                .strip()
            )
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        proportional = next(line for line in rollup.splitlines() if line.startswith("Pss:"))
        sizes[f"{title[:50]} {pid}"] = int(proportional.split()[1]) / 1024
    return sizes


def growth(before: dict[str, float], after: dict[str, float]) -> list[tuple[str, float]]:
    """What has grown most."""
    grown = [(title, size - before.get(title, 0.0)) for title, size in after.items()]
    return sorted(grown, key=lambda each: -each[1])[:5]


async def idle() -> bool:
    """Whether nothing is left in the engines, as soon as Prometheus can know."""
    for _ in range(40):
        gauges = ("ray_raylens_engine_running", "ray_raylens_engine_waiting")
        if not any([await asyncio.to_thread(measured, gauge) for gauge in gauges]):
            return True
        await asyncio.sleep(1)
    return False


def with_small_caches(config: dict[str, Any]) -> None:
    """They are full before the first count: what grows then is no cache."""
    for model in config["applications"][0]["args"]["models"]:
        model.update(feature_cache="4MiB", prefix_cache="8MiB")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    with serving(random_smolvlm(tmp_path), with_small_caches) as url:
        yield url


@pytest.mark.soak
async def test_mixed_traffic(server: str) -> None:
    sent: Counter[str] = Counter()
    outcomes: Counter[tuple[str, str]] = Counter()
    sizes: list[dict[str, float]] = []
    for part in range(4):
        until = time.monotonic() + MINUTES * 60 / 4
        await asyncio.gather(
            *(traffic(server, until, sent, outcomes, 100 * part + n) for n in range(IN_FLIGHT))
        )
        sizes.append(memory_mb())
        total = sum(sizes[-1].values())
        print(
            f"after {MINUTES * (part + 1) / 4:.1f} minutes: {total:.0f} MB, {dict(outcomes)}",
            flush=True,
        )
        print(f"most growth: {growth(sizes[0], sizes[-1])}", flush=True)
    assert {outcome for _, outcome in outcomes} <= ACCOUNTED
    for model, count in sent.items():
        assert count == sum(times for (asked, _), times in outcomes.items() if asked == model)
    assert sum(sizes[-1].values()) - sum(sizes[0].values()) < GROWTH_MB, growth(sizes[0], sizes[-1])
    assert await idle()
    for model in sent:
        assert outcomes[model, "wrong"] <= WRONG * outcomes[model, "right"], model
