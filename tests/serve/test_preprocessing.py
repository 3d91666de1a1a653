"""Recipes in every dialect, every picture format, hundreds of broken pictures, and metrics."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from models.pocket.scenes import Scene
from testing.pictures import encode_picture
from testing.scenes import draw_scene
from tests.malformed import malformed
from tests.serve.conftest import metrics_addresses, server_processes

MIN_ACCURACY = 0.85
"""Fraction of exact answers for these few scenes; ``benchmarks/preprocessing.py`` measures the
accuracy itself."""

Pixels = np.ndarray[Any, Any]


def scene_pixels(seed: int) -> tuple[Scene, Pixels]:
    scene, data, _ = draw_scene(seed)
    return scene, np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def caption(server: str, data: bytes, **form: Any) -> dict[str, Any]:
    fields = {
        name: value if isinstance(value, str) else json.dumps(value) for name, value in form.items()
    }
    response = httpx.post(f"{server}/v1/caption", files={"file": data}, data=fields, timeout=60)
    return dict(response.raise_for_status().json())


def data_url(data: bytes) -> str:
    return f"data:application/octet-stream;base64,{base64.b64encode(data).decode()}"


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_a_scene_is_captioned_from_every_format(server: str, file_format: str) -> None:
    right = 0
    for seed in range(8):
        scene, pixels = scene_pixels(seed)
        right += caption(server, encode_picture(pixels, file_format))["caption"] == scene.caption()
    assert right >= 8 * MIN_ACCURACY


def add_bars(pixels: Pixels) -> Pixels:
    """Add black bars above and below, as a letterboxed film has them."""
    bar = pixels.shape[0] // 3
    return np.pad(pixels, ((bar, bar), (0, 0), (0, 0)))


def to_uint8(pixels: Pixels) -> Pixels:
    return np.asarray(np.clip(pixels, 0, 255).astype(np.uint8))


def darken(pixels: Pixels) -> Pixels:
    return to_uint8(pixels * 0.3)


def warm(pixels: Pixels) -> Pixels:
    return to_uint8(pixels * np.array((1.25, 1, 0.7)))


def add_noise(pixels: Pixels) -> Pixels:
    return to_uint8(pixels + np.random.default_rng(0).normal(0, 40, pixels.shape))


FAULTS: dict[str, tuple[Callable[[Pixels], Pixels], Any, float]] = {
    "dark": (darken, "auto", 0.85),
    "warm": (warm, "auto", 0.85),
    "noisy": (add_noise, {"name": "auto", "denoise": {"method": "nlm"}}, 0.6),
}
"""Faults, each with a recipe that corrects it, and the share of captions that are right then. Of
those about noise, a fourth are right without it."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_recipe_makes_a_bad_picture_readable(server: str, fault: str) -> None:
    spoil, recipe, min_accuracy = FAULTS[fault]
    before = after = 0
    for seed in range(12):
        scene, pixels = scene_pixels(seed)
        data = encode_picture(spoil(pixels), "PNG")
        plain = caption(server, data, model="smolvlm", recipe="plain")
        corrected = caption(server, data, model="smolvlm", recipe=recipe)
        before += plain["caption"] == scene.caption()
        after += corrected["caption"] == scene.caption()
    assert after >= 12 * min_accuracy
    assert after >= before + 4


def test_an_openai_client_sends_a_recipe(server: str) -> None:
    client = openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0)
    scene, pixels = scene_pixels(3)
    url = data_url(encode_picture(darken(pixels)))
    picture = {"type": "image_url", "image_url": {"url": url}}
    messages: Any = [
        {"role": "user", "content": [picture, {"type": "text", "text": "Describe this image."}]}
    ]
    reply = client.chat.completions.create(
        model="smolvlm", messages=messages, extra_body={"recipe": "auto"}
    )
    assert reply.choices[0].message.content == scene.caption()
    with pytest.raises(openai.BadRequestError, match=r"recipe\.denoise\.enabled"):
        client.chat.completions.create(
            model="smolvlm",
            messages=messages,
            extra_body={"recipe": {"denoise": {"enabled": "yes"}}},
        )


def test_every_dialect_warns_of_a_step_that_fails(server: str) -> None:
    scene, pixels = scene_pixels(4)
    data = encode_picture(pixels, icc_profile=b"no profile")
    reply = caption(server, data)
    assert reply["caption"] == scene.caption()
    assert reply["warnings"][0].startswith("color_profile: skipped")
    body = {
        "messages": [
            {"role": "user", "content": [{"type": "image_url", "image_url": data_url(data)}]}
        ]
    }
    completion = httpx.post(f"{server}/v1/chat/completions", json=body, timeout=30).json()
    assert completion["warnings"] == reply["warnings"]
    stream = httpx.post(
        f"{server}/v1/chat/completions", json={**body, "stream": True}, timeout=30
    ).text
    assert json.loads(stream.split("\n\n")[0][6:])["warnings"] == reply["warnings"]
    preview = httpx.post(
        f"{server}/v1/preprocess", json={"image_url": data_url(data)}, timeout=30
    ).json()
    assert preview["warnings"] == reply["warnings"]


def test_preprocess_shows_the_picture_and_maps_back_to_the_original(server: str) -> None:
    _, pixels = scene_pixels(5)
    exif = Image.Exif()
    exif[0x0112] = 6
    height, width, channels = pixels.shape
    noise = np.random.default_rng(0).integers(40, 200, (height, width, channels), dtype=np.uint8)
    letterboxed = add_bars(noise)
    recipe = {"name": "enhanced", "size": [300, 300], "min_size": 0}
    body = {"image_url": data_url(encode_picture(letterboxed, exif=exif)), "recipe": recipe}
    response = httpx.post(f"{server}/v1/preprocess", json=body, timeout=30)
    preview = response.raise_for_status().json()
    picture = Image.open(io.BytesIO(base64.b64decode(preview["image_url"].split(",")[1])))
    geometry = preview["geometry"]
    assert picture.format == "JPEG"
    assert [picture.width, picture.height] == geometry["processed"]
    assert max(picture.size) == 300
    assert geometry["stored"] == [letterboxed.shape[1], letterboxed.shape[0]]
    assert geometry["original"] == [letterboxed.shape[0], letterboxed.shape[1]]
    assert geometry["model"] == [192, 192]
    a, b, c, d, e, f = geometry["to_original"]
    # The picture is rotated by 90°, so the bars are at the left and the right.
    corners = [(a * x + b * y + c, d * x + e * y + f) for x, y in ((0, 0), (0, 1), (1, 0))]
    expected = [(0.2, 0), (0.2, 1), (0.8, 0)]
    assert corners == [pytest.approx(corner, abs=1 / 100) for corner in expected]
    names = [step["name"] for step in preview["steps"]]
    assert names == ["decode", "smart_crop", "resize", "denoise", "color_balance", "encode"]
    assert all(step["ms"] >= 0 and step["did"] for step in preview["steps"])


def test_an_answer_of_several_megabytes_is_sent(server: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), dtype=np.uint8)
    recipe = {"name": "plain", "min_size": 2048, "jpeg_quality": 100}
    form: dict[str, Any] = {
        "files": {"file": encode_picture(noise)},
        "data": {"recipe": json.dumps(recipe)},
    }
    preview = httpx.post(f"{server}/v1/preprocess", timeout=60, **form)
    assert preview.status_code == 200, preview.text[:200]
    assert len(preview.content) > 5 * 2**20
    jpeg = httpx.post(
        f"{server}/v1/preprocess", timeout=60, headers={"Accept": "image/jpeg"}, **form
    )
    assert jpeg.content == base64.b64decode(preview.json()["image_url"].split(",")[1])


def test_an_error_names_the_broken_picture_of_several(server: str) -> None:
    _, pixels = scene_pixels(8)
    parts = [
        picture_part(encode_picture(pixels)),
        picture_part(encode_picture(pixels, "JPEG")[:600]),
    ]
    body = {"messages": [{"role": "user", "content": parts}]}
    error = httpx.post(f"{server}/v1/chat/completions", json=body, timeout=30).json()["error"]
    assert error["param"] == "messages.0.content.1.image_url.url"
    assert error["message"].startswith("messages.0.content.1.image_url.url: the JPEG of 600 bytes")


def test_a_warning_names_the_picture_of_several(server: str) -> None:
    _, pixels = scene_pixels(8)
    parts = [
        picture_part(encode_picture(pixels)),
        picture_part(encode_picture(pixels, icc_profile=b"no profile")),
    ]
    body = {"messages": [{"role": "user", "content": parts}]}
    reply = httpx.post(f"{server}/v1/chat/completions", json=body, timeout=30).json()
    assert reply["warnings"][0].startswith("picture 2: color_profile: skipped")


def test_abandoned_slow_work_does_not_delay_other_requests(server: str) -> None:
    slow = {
        "size": [2200, 2200],
        "preserve_aspect_ratio": False,
        "denoise": {"enabled": True, "method": "nlm"},
    }
    body = {"image_url": data_url(encode_picture(Image.new("RGB", (4, 4)))), "recipe": slow}
    for _ in range(5):
        response = httpx.post(
            f"{server}/v1/preprocess", json=body, headers={"X-Request-Timeout": "0.5"}, timeout=30
        )
        assert response.status_code == 504
    for path in ("/v1/preprocess", "/v1/caption"):
        for _ in range(3):
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{server}{path}", json=body, timeout=0.7)  # the client disconnects
    started = time.monotonic()
    _, pixels = scene_pixels(1)
    caption(server, encode_picture(pixels))
    assert time.monotonic() - started < 6


def replica_names() -> dict[int, str]:
    """Return the deployment's name of each replica's process by process id.

    Leaves out replicas that the autoscaler is stopping.
    """
    names = {}
    for pid in server_processes():
        try:
            title = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if "ServeReplica:raylens" in title and "perform_graceful_shutdown" not in title:
            names[pid] = title.split(":")[-1].strip("\0 ")
    return names


def resident_mb(pids: list[int]) -> float:
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def test_200_broken_pictures_are_refused_and_leak_no_memory(server: str) -> None:
    files = [malformed(seed) for seed in range(200)]

    async def send_all() -> None:
        async with httpx.AsyncClient(base_url=server, timeout=90) as client:
            slots = asyncio.Semaphore(8)

            async def send(number: int) -> None:
                description, data = files[number]
                async with slots:
                    if number % 2:
                        response = await client.post("/v1/caption", files={"file": data})
                        message = response.json()["detail"]
                    else:
                        body = {"messages": [{"role": "user", "content": [picture_part(data)]}]}
                        response = await client.post("/v1/chat/completions", json=body)
                        message = response.json()["error"]["message"]
                status = response.status_code
                assert status in (400, 413, 415), (description, status, message)
                field = "file: " if number % 2 else "messages.0.content.0.image_url.url: "
                assert message.startswith(field), (description, message)
                assert len(message) < 400

            await asyncio.gather(*map(send, range(200)))

    await send_all()
    before = replica_names()
    assert "Preprocessor" in before.values()
    watched = [
        pid for pid, name in before.items() if name in ("Preprocessor", "smolvlm", "Ingress")
    ]
    memory = resident_mb(watched)
    await send_all()
    after = replica_names()
    # The autoscaler may stop a second replica meanwhile, but never the last one of these.
    survivors = {before[pid] for pid in before.keys() & after.keys()}
    assert survivors >= set(before.values()) - {"Realtime"}
    if all(pid in after for pid in watched):
        assert resident_mb(watched) - memory < 100
    scene, pixels = scene_pixels(6)
    assert caption(server, encode_picture(pixels))["caption"] == scene.caption()


def picture_part(data: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(data)}}


def test_prometheus_reports_the_preprocessors_queue_and_times(server: str) -> None:
    _, pixels = scene_pixels(7)
    caption(server, encode_picture(pixels), recipe="enhanced")
    series = (
        "ray_raylens_preprocessor_queue_depth{",
        "ray_raylens_preprocessor_wait_seconds_bucket{",
        'step="denoise"',
        'outcome="ok"',
    )
    reported: set[str] = set()
    deadline = time.monotonic() + 40
    while len(reported) < len(series) and time.monotonic() < deadline:
        for address in metrics_addresses():
            text = httpx.get(f"http://{address}/metrics", timeout=10).text
            reported |= {substring for substring in series if substring in text}
        time.sleep(1)
    assert reported == set(series)
