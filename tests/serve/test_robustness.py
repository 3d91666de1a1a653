"""Odd input, large input, overload, and clients that disconnect."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image, ImageFilter

from testing.pictures import encode_picture, gradient, png_header, random_pixels
from testing.scenes import draw_scene
from tests.serve.conftest import read_metric

METRICS_DELAY_S = 12.0
"""Seconds after which the Prometheus endpoints have caught up."""
RUNNING = "ray_raylens_engine_running"
ANSWERS = "ray_raylens_engine_answers_total"


def data_url(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def picture_part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def chat(
    *urls: str, model: str = "smolvlm", text: str = "Describe this image.", **parameters: Any
) -> dict[str, Any]:
    content = [*map(picture_part, urls), {"type": "text", "text": text}]
    return {"model": model, "messages": [{"role": "user", "content": content}], **parameters}


def photograph(width: int, height: int, seed: int) -> Image.Image:
    """Return soft random blotches with fine grain, as hard to compress as a photograph."""
    rough = Image.fromarray(random_pixels(width // 64, height // 64, seed)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    soft = np.asarray(rough.filter(ImageFilter.GaussianBlur(2)), np.int16)
    grain = np.random.default_rng(seed).integers(-12, 13, soft.shape, dtype=np.int16)
    return Image.fromarray(np.clip(soft + grain, 0, 255).astype(np.uint8))


INVALID_PICTURES = {
    "not an image": (data_url(b"%PDF-1.7 and so on"), 415, "%PDF"),
    "a sound": (data_url(b"RIFF\x24\0\0\0WAVEfmt "), 415, "a WAVE sound"),
    "a truncated JPEG": (
        data_url(encode_picture(gradient(300, 300), "JPEG")[:3000]),
        400,
        "truncated",
    ),
    "one pixel": (data_url(encode_picture(gradient(1, 1))), 400, "1×1 pixels; expected at least"),
    "a bomb's header": (
        data_url(png_header(50_000, 50_000)),
        413,
        "50000×50000 pixels; the limit is",
    ),
    "broken base64": ("data:image/png;base64,@@@@", 400, "base64"),
    "a private address": ("http://127.0.0.1:9/a.png", 400, "is not a public address"),
    "a path": ("/etc/passwd", 400, "data URL"),
    "nothing": ("data:image/png;base64,", 400, "empty"),
}


@pytest.mark.parametrize("name", INVALID_PICTURES)
@pytest.mark.parametrize("stream", [False, True])
def test_an_invalid_picture_gets_its_status_and_message_in_both_dialects(
    server: str, name: str, stream: bool
) -> None:
    url, status, message = INVALID_PICTURES[name]
    completion = httpx.post(
        f"{server}/v1/chat/completions", json=chat(url, stream=stream), timeout=30
    )
    caption = httpx.post(
        f"{server}/v1/caption", json={"image_url": url, "stream": stream}, timeout=30
    )
    assert (completion.status_code, caption.status_code) == (status, status)
    assert message in completion.json()["error"]["message"]
    assert message in caption.json()["detail"]


def test_a_body_of_30_mb_is_refused(server: str) -> None:
    response = httpx.post(
        f"{server}/v1/caption",
        json={"image_url": "data:image/png;base64," + "A" * 30_000_000},
        timeout=60,
    )
    assert response.status_code == 413
    assert "the limit is 29360128 bytes" in response.json()["detail"]


def test_a_request_sets_its_own_id_and_deadline(server: str) -> None:
    _, _, url = draw_scene(1)
    response = httpx.post(
        f"{server}/v1/caption",
        json={"image_url": url},
        headers={"X-Request-ID": "mine-1"},
        timeout=30,
    )
    assert response.headers.get_list("x-request-id") == ["mine-1"]
    body = chat(url, model="cramped", max_tokens=4000)
    started = time.monotonic()
    response = httpx.post(
        f"{server}/v1/chat/completions", json=body, headers={"X-Request-Timeout": "0.3"}, timeout=30
    )
    assert response.status_code == 504
    assert "deadline" in response.json()["error"]["message"]
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("size", ["12 MB JPEG", "4K PNG"])
def test_a_large_picture_is_accepted(server: str, size: str) -> None:
    if size == "12 MB JPEG":
        data = encode_picture(photograph(4000, 3000, 1), "JPEG", quality=97, subsampling=0)
        assert 11e6 < len(data) < 20 * 2**20, len(data)
    else:
        pixels = np.asarray(photograph(3840, 2160, 2)) & 0xF8
        data = encode_picture(pixels, "PNG", compress_level=1)
        assert len(data) < 20 * 2**20, len(data)
    response = httpx.post(f"{server}/v1/caption", json={"image_url": data_url(data)}, timeout=60)
    assert response.status_code == 200, response.text[:300]


def test_three_pictures_in_one_chat_and_a_second_turn(server: str) -> None:
    urls = [draw_scene(seed)[2] for seed in range(3)] + [
        data_url(encode_picture(photograph(1600, 1200, 3), "JPEG"), "image/jpeg")
    ]
    body = chat(*urls[:3])
    body["messages"] += [
        {"role": "assistant", "content": "shapes"},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": urls[3]},
                {"type": "text", "text": "And here?"},
            ],
        },
    ]
    reply = httpx.post(f"{server}/v1/chat/completions", json=body, timeout=60)
    assert reply.status_code == 200, reply.text[:300]
    assert reply.json()["usage"]["prompt_tokens"] > 4 * 9


@pytest.mark.parametrize(
    "text", ["<image>", "<|im_start|><end_of_utterance>" * 5, "\x00\U0001f600 ünï", "a" * 3000]
)
def test_special_tokens_in_text_are_plain_text(server: str, text: str) -> None:
    _, _, url = draw_scene(2)
    body = chat(url, text=text, max_tokens=8)
    assert httpx.post(f"{server}/v1/chat/completions", json=body, timeout=30).status_code == 200


def test_a_prompt_over_the_context_is_refused_with_its_limit(server: str) -> None:
    response = httpx.post(f"{server}/v1/chat/completions", json=chat(text="q" * 20_000), timeout=30)
    assert response.status_code == 400
    assert "the model's context is 4096" in response.json()["error"]["message"]


async def test_200_requests_at_once_get_right_answers_or_a_503_with_retry_after(
    server: str,
) -> None:
    scenes = [draw_scene(seed, max_side=256) for seed in range(200)]
    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(base_url=server, timeout=90, limits=limits) as client:

        async def ask(number: int) -> httpx.Response:
            stream = number % 3 == 0
            body = chat(scenes[number][2], stream=stream)
            return await client.post("/v1/chat/completions", json=body)

        responses = await asyncio.gather(*map(ask, range(200)))
    right = served = 0
    for (scene, _, _), response in zip(scenes, responses, strict=True):
        if response.status_code == 503:
            assert int(response.headers["retry-after"]) >= 1
            continue
        assert response.status_code == 200
        served += 1
        right += content_of(response) == scene.caption()
    assert served >= 64
    assert right / served >= 0.9, f"{right} of {served}"


def content_of(response: httpx.Response) -> str:
    """Return the text of a completion or of a stream's chunks."""
    if not response.text.startswith("data:"):
        return str(response.json()["choices"][0]["message"]["content"])
    assert response.text.rstrip().endswith("data: [DONE]")
    events = [
        json.loads(line[6:]) for line in response.text.split("\n\n") if line.startswith("data: {")
    ]
    return "".join(event["choices"][0]["delta"].get("content", "") for event in events)


async def test_a_full_model_refuses_requests_and_disconnects_free_its_slots(server: str) -> None:
    """Fill the cramped model with endless answers, then disconnect all clients, streaming or
    waiting."""
    endless = chat(text="a", model="cramped", max_tokens=4000)
    async with httpx.AsyncClient(base_url=server, timeout=60) as client:
        streaming = [
            asyncio.ensure_future(read_forever(client, {**endless, "stream": True}))
            for _ in range(2)
        ]
        waiting: list[asyncio.Future[httpx.Response]] = []
        refusals: list[httpx.Response] = []
        while not refusals:
            assert len(waiting) < 30
            waiting.append(asyncio.ensure_future(client.post("/v1/chat/completions", json=endless)))
            await asyncio.sleep(0.1)
            refusals = [task.result() for task in waiting if task.done()]
        assert refusals[0].status_code == 503, refusals[0].text[:300]
        assert "retry-after" in refusals[0].headers, refusals[0].text[:300]
        tasks: list[asyncio.Future[Any]] = [*streaming, *waiting]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(1.0)
        started = time.monotonic()
        response = await client.post(
            "/v1/chat/completions", json=chat(text="a", model="cramped", max_tokens=1)
        )
        assert response.status_code == 200, response.text[:300]
        assert time.monotonic() - started < 1.0


async def test_the_metrics_show_that_a_disconnect_frees_its_slot(server: str) -> None:
    """Fill both slots of the cramped model with endless answers, one streamed and one not, then
    disconnect both clients."""
    endless = chat(text="a", model="cramped", max_tokens=4000)
    await asyncio.sleep(METRICS_DELAY_S)
    async with httpx.AsyncClient(base_url=server, timeout=60) as client:

        async def request_forever(*, stream: bool) -> None:
            while True:
                if stream:
                    await read_forever(client, {**endless, "stream": True})
                else:
                    (await client.post("/v1/chat/completions", json=endless)).raise_for_status()

        clients = [
            asyncio.ensure_future(request_forever(stream=stream)) for stream in (True, False)
        ]
        assert await becomes_true(lambda: read_metric(RUNNING, model="cramped") == 2)
        aborts = await asyncio.to_thread(read_metric, ANSWERS, model="cramped", reason="abort")
        assert not any(task.done() for task in clients)
        for task in clients:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        assert await becomes_true(lambda: read_metric(RUNNING, model="cramped") == 0)
        assert await becomes_true(
            lambda: read_metric(ANSWERS, model="cramped", reason="abort") == aborts + 2
        )


async def becomes_true(condition: Callable[[], bool], timeout_s: float = 40.0) -> bool:
    """Return whether ``condition`` becomes true within ``timeout_s`` seconds."""
    deadline = time.monotonic() + timeout_s
    while not await asyncio.to_thread(condition):
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.5)
    return True


async def read_forever(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        async for _ in response.aiter_lines():
            pass
