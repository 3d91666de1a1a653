"""Videos over HTTP: damaged ones are refused by name, and cost nothing that lasts."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import httpx
import numpy as np

from models.pocket.video_files import encode_video
from testing.videos import malformed_video
from tests.serve.test_preprocessing import replica_names, resident_mb

PATH = "/v1/chat/completions"
COUNT = 100
GRAY = np.full((48, 64, 3), 128, np.uint8)
NOISE = "noise inside"
"""Some formats go on behind it, so that such a video may be answered."""


def ask(data: bytes) -> dict[str, Any]:
    url = f"data:video/mp4;base64,{base64.b64encode(data).decode()}"
    part = {"type": "video_url", "video_url": {"url": url}}
    content = [part, {"type": "text", "text": "Describe the video."}]
    return {"model": "qwen2.5-vl", "messages": [{"role": "user", "content": content}]}


async def send_all(server: str) -> None:
    slots = asyncio.Semaphore(8)
    async with httpx.AsyncClient(base_url=server, timeout=90) as client:

        async def send(seed: int) -> None:
            description, data = malformed_video(seed)
            async with slots:
                response = await client.post(PATH, json=ask(data))
            if response.status_code == 200:
                assert description.endswith(NOISE)
                return
            message = response.json()["error"]["message"]
            assert response.status_code in (400, 413, 415), (description, message)
            assert message.startswith("messages.0.content.0.video_url.url: "), message
            assert len(message) < 400

        await asyncio.gather(*map(send, range(COUNT)))


async def test_100_damaged_videos_are_refused_and_leak_no_memory(server: str) -> None:
    await send_all(server)
    before = replica_names()
    watched = [pid for pid, name in before.items() if name in ("Preprocessor", "qwen2.5-vl")]
    memory = resident_mb(watched)
    await send_all(server)
    after = replica_names()
    crashed = [name for pid, name in before.items() if pid not in after and name != "Preprocessor"]
    assert not crashed
    assert "Preprocessor" in after.values()
    if all(pid in after for pid in watched):
        assert resident_mb(watched) - memory < 100
    async with httpx.AsyncClient(base_url=server, timeout=90) as client:
        whole = await client.post(PATH, json=ask(encode_video([GRAY] * 8, 4)))
    assert whole.status_code == 200, whole.text
