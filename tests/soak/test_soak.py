"""Minutes of mixed traffic: every request accounted for, memory flat. ``make soak``; SOAK_MINUTES sets how long."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.scenes import drawn
from tests.serve.conftest import processes, server

__all__ = ["server"]

MINUTES = float(os.environ.get("SOAK_MINUTES", "5"))
IN_FLIGHT = 24
GROWTH_MB = 150


def resident_mb() -> float:
    """Memory of all of the server's processes, shared pages counted once a process."""
    pages = 0
    for pid in processes():
        try:
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except OSError:
            continue
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def traffic(url: str, until: float, outcomes: Counter[str], rng: random.Random) -> None:
    """One client after another: whole answers, streams, clients that go away, and bad input."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        while time.monotonic() < until:
            scene, data, picture = drawn(rng.randrange(10**6), max_side=rng.choice((200, 600)))
            kind = rng.choice(("whole", "whole", "stream", "leave", "bad"))
            body: dict[str, Any] = {"image_url": picture, "length": "normal", "stream": kind in ("stream", "leave")}
            if kind == "bad":
                response = await client.post("/v1/caption", files={"file": data[: len(data) // 2]})
                outcomes["bad: refused" if 400 <= response.status_code < 500 else f"bad: {response.status_code}"] += 1
            elif kind == "leave":
                async with client.stream("POST", "/v1/caption", json=body):
                    outcomes["left"] += 1
            else:
                response = await client.post("/v1/caption", json=body)
                if response.status_code == 503:
                    outcomes["told to come back"] += 1
                elif response.status_code != 200:
                    outcomes[f"{kind}: {response.status_code}"] += 1
                elif kind == "stream":
                    outcomes["right" if '"completed":true' in response.text else "broken stream"] += 1
                else:
                    outcomes["right" if response.json()["caption"] == scene.caption() else "wrong"] += 1


@pytest.mark.soak
async def test_mixed_traffic(server: str) -> None:
    outcomes: Counter[str] = Counter()
    sizes = []
    for part in range(4):
        until = time.monotonic() + MINUTES * 60 / 4
        clients = (traffic(server, until, outcomes, random.Random(100 * part + n)) for n in range(IN_FLIGHT))
        await asyncio.gather(*clients)
        sizes.append(resident_mb())
        print(f"after {MINUTES * (part + 1) / 4:.1f} minutes: {sizes[-1]:.0f} MB, {dict(outcomes)}")
    assert set(outcomes) <= {"right", "wrong", "left", "bad: refused", "told to come back"}
    assert outcomes["wrong"] <= 0.02 * outcomes["right"]
    assert sizes[-1] - sizes[0] < GROWTH_MB
