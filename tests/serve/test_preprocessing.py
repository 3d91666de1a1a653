"""Recipes in every dialect, every format, broken pictures by the hundred, and what Prometheus sees."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from models.pocket.scenes import Scene
from testing.pictures import encoded
from testing.scenes import drawn
from tests.malformed import malformed
from tests.serve.conftest import processes

ENOUGH = 0.85
"""Share of exact answers in these few scenes; ``benchmarks/preprocessing.py`` measures the real
one."""


def scene_pixels(seed: int) -> tuple[Scene, np.ndarray[Any, Any]]:
    scene, data, _ = drawn(seed)
    return scene, np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def caption(server: str, data: bytes, **form: Any) -> dict[str, Any]:
    fields = {
        name: value if isinstance(value, str) else json.dumps(value) for name, value in form.items()
    }
    response = httpx.post(f"{server}/v1/caption", files={"file": data}, data=fields, timeout=60)
    return dict(response.raise_for_status().json())


def data_url(data: bytes) -> str:
    return f"data:application/octet-stream;base64,{base64.b64encode(data).decode()}"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_a_scene_is_captioned_from_every_format(server: str, kind: str) -> None:
    right = 0
    for seed in range(8):
        scene, pixels = scene_pixels(seed)
        right += caption(server, encoded(pixels, kind))["caption"] == scene.caption()
    assert right >= 8 * ENOUGH


def letterboxed(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    bar = pixels.shape[0] // 3
    return np.pad(pixels, ((bar, bar), (0, 0), (0, 0)))


FAULTS = {
    "dark": (lambda pixels: (pixels * 0.3).astype(np.uint8), "auto"),
    "warm": (
        lambda pixels: np.clip(pixels * np.array((1.25, 1, 0.7)), 0, 255).astype(np.uint8),
        "auto",
    ),
    "noisy": (
        lambda p: np.clip(p + np.random.default_rng(0).normal(0, 25, p.shape), 0, 255).astype(
            np.uint8
        ),
        {"name": "auto", "denoise": {"method": "nlm"}},
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_recipe_makes_a_bad_picture_readable(server: str, fault: str) -> None:
    spoil, recipe = FAULTS[fault]
    before = after = 0
    for seed in range(12):
        scene, pixels = scene_pixels(seed)
        data = encoded(spoil(pixels), "PNG")
        before += (
            caption(server, data, model="smolvlm", recipe="plain")["caption"] == scene.caption()
        )
        after += caption(server, data, model="smolvlm", recipe=recipe)["caption"] == scene.caption()
    assert after >= 12 * ENOUGH
    assert after > before


def test_an_openai_client_sends_a_recipe(server: str) -> None:
    client = openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0)
    scene, pixels = scene_pixels(3)
    url = data_url(encoded((pixels * 0.3).astype(np.uint8)))
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


def test_a_step_that_fails_is_named_in_the_warnings_of_every_dialect(server: str) -> None:
    scene, pixels = scene_pixels(4)
    data = encoded(pixels, icc_profile=b"no profile")
    reply = caption(server, data)
    assert reply["caption"] == scene.caption()
    assert reply["warnings"][0].startswith("color_profile: skipped")
    body = {
        "messages": [
            {"role": "user", "content": [{"type": "image_url", "image_url": data_url(data)}]}
        ]
    }
    chatted = httpx.post(f"{server}/v1/chat/completions", json=body, timeout=30).json()
    assert chatted["warnings"] == reply["warnings"]
    streamed = httpx.post(
        f"{server}/v1/chat/completions", json={**body, "stream": True}, timeout=30
    ).text
    assert json.loads(streamed.split("\n\n")[0][6:])["warnings"] == reply["warnings"]
    shown = httpx.post(
        f"{server}/v1/preprocess", json={"image_url": data_url(data)}, timeout=30
    ).json()
    assert shown["warnings"] == reply["warnings"]


def test_preprocess_shows_the_picture_and_leads_back(server: str) -> None:
    _, pixels = scene_pixels(5)
    exif = Image.Exif()
    exif[0x0112] = 6
    barred = letterboxed(np.random.default_rng(0).integers(40, 200, pixels.shape, dtype=np.uint8))
    recipe = {"name": "enhanced", "size": [300, 300], "min_size": 0}
    body = {"image_url": data_url(encoded(barred, exif=exif)), "recipe": recipe}
    shown = httpx.post(f"{server}/v1/preprocess", json=body, timeout=30).raise_for_status().json()
    picture = Image.open(io.BytesIO(base64.b64decode(shown["image_url"].split(",")[1])))
    geometry = shown["geometry"]
    assert picture.format == "JPEG"
    assert [picture.width, picture.height] == geometry["processed"]
    assert max(picture.size) == 300
    assert geometry["original"] == [barred.shape[1], barred.shape[0]]
    a, b, c, d, e, f = geometry["to_original"]
    # Turned by a quarter: the top left corner is the stored picture's lower left one, inside its
    # bars.
    corners = [(a * x + b * y + c, d * x + e * y + f) for x, y in ((0, 0), (0, 1), (1, 0))]
    expected = [(0, 0.8), (1, 0.8), (0, 0.2)]
    assert corners == [pytest.approx(corner, abs=1 / 100) for corner in expected]
    names = [step["name"] for step in shown["steps"]]
    assert names == ["decode", "smart_crop", "resize", "denoise", "color_balance", "encode"]
    assert all(step["ms"] >= 0 and step["did"] for step in shown["steps"])


def test_an_answer_of_many_megabytes_passes(server: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), dtype=np.uint8)
    recipe = {"name": "plain", "min_size": 2048, "jpeg_quality": 100}
    form: dict[str, Any] = {
        "files": {"file": encoded(noise)},
        "data": {"recipe": json.dumps(recipe)},
    }
    shown = httpx.post(f"{server}/v1/preprocess", timeout=60, **form)
    assert shown.status_code == 200, shown.text[:200]
    assert len(shown.content) > 5 * 2**20
    alone = httpx.post(
        f"{server}/v1/preprocess", timeout=60, headers={"Accept": "image/jpeg"}, **form
    )
    assert alone.content == base64.b64decode(shown.json()["image_url"].split(",")[1])


def test_a_broken_picture_of_several_goes_by_its_own_name(server: str) -> None:
    _, pixels = scene_pixels(8)
    parts = [picture_part(encoded(pixels)), picture_part(encoded(pixels, "JPEG")[:600])]
    body = {"messages": [{"role": "user", "content": parts}]}
    error = httpx.post(f"{server}/v1/chat/completions", json=body, timeout=30).json()["error"]
    assert error["param"] == "messages.0.content.1.image_url.url"
    assert error["message"].startswith("messages.0.content.1.image_url.url: the JPEG of 600 bytes")


def test_warnings_of_several_pictures_say_which(server: str) -> None:
    _, pixels = scene_pixels(8)
    parts = [
        picture_part(encoded(pixels)),
        picture_part(encoded(pixels, icc_profile=b"no profile")),
    ]
    body = {"messages": [{"role": "user", "content": parts}]}
    reply = httpx.post(f"{server}/v1/chat/completions", json=body, timeout=30).json()
    assert reply["warnings"][0].startswith("picture 2: color_profile: skipped")


def test_slow_work_that_nobody_waits_for_does_not_hold_others_up(server: str) -> None:
    slow = {
        "size": [4096, 4096],
        "preserve_aspect_ratio": False,
        "denoise": {"enabled": True, "method": "nlm"},
    }
    body = {"image_url": data_url(encoded(Image.new("RGB", (4, 4)))), "recipe": slow}
    for _ in range(5):
        late = httpx.post(
            f"{server}/v1/preprocess", json=body, headers={"X-Request-Timeout": "0.5"}, timeout=30
        )
        assert late.status_code == 504
    for path in ("/v1/preprocess", "/v1/caption"):
        for _ in range(3):
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{server}{path}", json=body, timeout=0.7)  # a client that goes away
    started = time.monotonic()
    _, pixels = scene_pixels(1)
    caption(server, encoded(pixels))
    assert time.monotonic() - started < 6


def replicas() -> dict[int, str]:
    """The title of each replica's process by its id."""
    titles = {}
    for pid in processes():
        try:
            title = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if "ServeReplica:raylens" in title:
            titles[pid] = title.split(":")[-1].strip("\0 ")
    return titles


def resident_mb(pids: list[int]) -> float:
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def test_200_broken_pictures_are_each_refused_and_leave_nothing_behind(server: str) -> None:
    files = [malformed(seed) for seed in range(200)]

    async def send_all() -> None:
        async with httpx.AsyncClient(base_url=server, timeout=90) as client:
            places = asyncio.Semaphore(8)

            async def send(number: int) -> None:
                name, data = files[number]
                async with places:
                    if number % 2:
                        response = await client.post("/v1/caption", files={"file": data})
                        message = response.json()["detail"]
                    else:
                        body = {"messages": [{"role": "user", "content": [picture_part(data)]}]}
                        response = await client.post("/v1/chat/completions", json=body)
                        message = response.json()["error"]["message"]
                assert response.status_code in (400, 413, 415), (
                    name,
                    response.status_code,
                    message,
                )
                field = "file: " if number % 2 else "messages.0.content.0.image_url.url: "
                assert message.startswith(field), (name, message)
                assert len(message) < 400

            await asyncio.gather(*map(send, range(200)))

    await send_all()
    before = replicas()
    assert "Preprocessor" in before.values()
    lasting = [
        pid for pid, name in before.items() if name in ("Preprocessor", "smolvlm", "Ingress")
    ]
    memory = resident_mb(lasting)
    await send_all()
    after = replicas()
    gone = [name for pid, name in before.items() if pid not in after and name != "Preprocessor"]
    assert not gone
    assert any(pid in after for pid, name in before.items() if name == "Preprocessor")
    if all(pid in after for pid in lasting):
        assert resident_mb(lasting) - memory < 100
    scene, pixels = scene_pixels(6)
    assert caption(server, encoded(pixels))["caption"] == scene.caption()


def picture_part(data: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(data)}}


def test_prometheus_sees_the_preprocessors_queue_and_times(server: str) -> None:
    _, pixels = scene_pixels(7)
    caption(server, encoded(pixels), recipe="enhanced")
    wanted = (
        "ray_raylens_preprocessor_queue_depth{",
        "ray_raylens_preprocessor_wait_seconds_bucket{",
        'step="denoise"',
        'outcome="ok"',
    )
    seen: set[str] = set()
    until = time.monotonic() + 40
    while len(seen) < len(wanted) and time.monotonic() < until:
        targets = json.loads(Path("/tmp/ray/prom_metrics_service_discovery.json").read_text())[0][
            "targets"
        ]
        for address in targets:
            text = httpx.get(f"http://{address}/metrics", timeout=10).text
            seen |= {words for words in wanted if words in text}
        time.sleep(1)
    assert seen == set(wanted)
