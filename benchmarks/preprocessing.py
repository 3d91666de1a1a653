"""Measure what preprocessing costs, what it gains, and what it spoils.

``python -m benchmarks.preprocessing`` prints three tables:

- *speed*: pictures a second by recipe and size in one thread, against Pillow doing the same in one
  thread, and the share of a caption request that preprocessing takes;
- *accuracy*: how often the pocket model captions a scene exactly, over HTTP, on clean and degraded
  scenes with enhancement off, on and auto; *off* is the baseline;
- *harm*: how far *on* and *auto* change pictures that need no enhancement; ``--photographs`` names
  a folder of photographs.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageCms, ImageFilter, ImageOps

from benchmarks.documents import draw_document
from benchmarks.photograph import draw_photograph
from benchmarks.statistics import wilson_interval
from benchmarks.target import target
from models.pocket.drawing import draw, encode
from models.pocket.scenes import Scene, random_scene
from preprocessing.encode import to_jpeg
from preprocessing.header import PictureLimits
from preprocessing.pipeline import run
from raylens.core.recipe import AUTO, ENHANCED, PLAIN, ColorBalance, Denoise, Recipe

Pixels = NDArray[np.uint8]
LIMITS = PictureLimits(max_bytes=10**8, max_pixels=10**8, min_side=1, max_side=20_000)
IN_FLIGHT = 12
ON = Recipe(denoise=Denoise(enabled=True), color_balance=ColorBalance(enabled=True))

# --- speed

SIZES = ((640, 480), (1920, 1080), (4000, 3000))
ALL_STEPS = Recipe(
    smart_crop=True,
    size=(1024, 1024),
    denoise=Denoise(enabled=True, method="median"),
    color_balance=ColorBalance(enabled=True),
)
"""Every step. The median is the only denoising filter that Pillow has as well."""
RECIPES = {
    "plain": PLAIN,
    "1024 pixels": Recipe(size=(1024, 1024)),
    "every step, median": ALL_STEPS,
    "auto": AUTO,
    "enhanced (bilateral)": ENHANCED,
}


def run_in_pillow(data: bytes, recipe: Recipe) -> Pixels:
    """Do the same steps in plain Pillow, as well as it can.

    The picture is decoded at a fraction of its size, as Pillow's ``thumbnail`` does.
    """
    encoded = Image.open(io.BytesIO(data))
    if not recipe.smart_crop:
        encoded.draft("RGB", recipe.size)
    picture = ImageOps.exif_transpose(encoded).convert("RGB")
    if recipe.smart_crop:
        corner = Image.new("RGB", picture.size, picture.getpixel((0, 0)))
        picture = picture.crop(ImageChops.difference(picture, corner).point(_OVER_14).getbbox())
    picture.thumbnail(recipe.size, Image.Resampling.BOX)
    if recipe.denoise.enabled:
        picture = picture.filter(ImageFilter.MedianFilter(3))
    if recipe.color_balance.enabled:
        picture = _balance_in_pillow(picture, recipe.color_balance)
    return np.asarray(picture)


def _balance_in_pillow(picture: Image.Image, balance: ColorBalance) -> Image.Image:
    lightness = [min(255, round(v * balance.l_channel_boost)) for v in range(256)]
    color = [
        min(255, max(0, round(128 + (v - 128) * balance.ab_channel_boost))) for v in range(256)
    ]
    lab = _apply_transform(picture, _TO_LAB).split()
    tables = (lightness, color, color)
    bands = [band.point(table) for band, table in zip(lab, tables, strict=True)]
    return _apply_transform(Image.merge("LAB", bands), _FROM_LAB)


def _apply_transform(picture: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    transformed = ImageCms.applyTransform(picture, transform)
    assert transformed is not None
    return transformed


_OVER_14 = [255 * (level > 14) for level in range(256)] * 3
_SRGB = ImageCms.createProfile("sRGB")
_LAB = ImageCms.createProfile("LAB")
_TO_LAB = ImageCms.buildTransform(_SRGB, _LAB, "RGB", "LAB")
_FROM_LAB = ImageCms.buildTransform(_LAB, _SRGB, "LAB", "RGB")


def median_seconds(work: Callable[[], object], budget: float = 1.0) -> float:
    """Return the median seconds of a call.

    After a warm-up call it repeats ``work`` for ``budget`` seconds, and at least 3 times.
    """
    work()
    times: list[float] = []
    while len(times) < 3 or sum(times) < budget:
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return median(times)


def measure_speed() -> None:
    cv2.setNumThreads(1)
    print("| recipe | picture | ms | pictures/s | Pillow, pictures/s | speedup over Pillow |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, recipe in RECIPES.items():
        for width, height in SIZES:
            data = draw_photograph(width, height, 1)
            ours = median_seconds(partial(run, data, recipe, LIMITS))
            row = f"| {name} | {width}×{height} JPEG | {1000 * ours:.1f} | {1 / ours:.1f} |"
            if recipe is AUTO or recipe is ENHANCED:
                print(row, "Pillow has no such filter | |")
                continue
            pillow = median_seconds(partial(run_in_pillow, data, recipe))
            print(row, f"{1 / pillow:.1f} | {pillow / ours:.1f} |")


async def measure_share(url: str) -> None:
    """Print the share of a caption request that preprocessing takes, one request at a time."""
    print("\n| picture | recipe | caption request, p50 ms | preprocessing, p50 ms | share |")
    print("| --- | --- | --- | --- | --- |")
    scene = encode(draw(random_scene(random.Random(3), 512), random.Random(3)), random.Random(3))[0]
    files = {
        "scene of up to 512 pixels": scene,
        "1920×1080 JPEG": draw_photograph(1920, 1080, 1),
        "4000×3000 JPEG": draw_photograph(4000, 3000, 1),
    }
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        for name, data in files.items():
            for recipe in ("plain", "auto", "enhanced"):
                request_ms, steps_ms = await _time_requests(client, data, recipe)
                share = steps_ms / request_ms
                print(f"| {name} | {recipe} | {request_ms:.0f} | {steps_ms:.1f} | {share:.0%} |")


async def _time_requests(
    client: httpx.AsyncClient, data: bytes, recipe: str
) -> tuple[float, float]:
    """Return the median ms of a caption request and of its preprocessing steps."""
    request_ms = []
    steps_ms = []
    for _ in range(15):
        form: dict[str, Any] = {"files": {"file": data}, "data": {"recipe": recipe}}
        started = time.perf_counter()
        (await client.post("/v1/caption", **form)).raise_for_status()
        request_ms.append(1000 * (time.perf_counter() - started))
        reply = (await client.post("/v1/preprocess", **form)).raise_for_status().json()
        steps_ms.append(sum(step["ms"] for step in reply["steps"] if step["name"] != "encode"))
    return median(request_ms), median(steps_ms)


# --- accuracy


def add_noise(pixels: Pixels, rng: np.random.Generator, sigma: float = 25) -> Pixels:
    return _to_levels(pixels + rng.normal(0, sigma, pixels.shape))


def _to_levels(values: NDArray[Any]) -> Pixels:
    """Round to 8-bit levels."""
    levels: Pixels = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return levels


DEGRADATIONS: dict[str, Callable[[Pixels, np.random.Generator], Pixels]] = {
    "clean": lambda pixels, rng: pixels,
    "noisy (σ = 25)": add_noise,
    "warm cast (× 1.25, 1, 0.7)": lambda pixels, rng: _to_levels(
        pixels * np.array((1.25, 1.0, 0.7))
    ),
    "cold cast (× 0.75, 0.95, 1.3)": lambda pixels, rng: _to_levels(
        pixels * np.array((0.75, 0.95, 1.3))
    ),
    "dark (× 0.3)": lambda pixels, rng: _to_levels(pixels * 0.3),
    "low contrast (× 0.2 around 128)": lambda pixels, rng: _to_levels(128 + (pixels - 128.0) * 0.2),
}
SWITCHES: dict[str, Any] = {
    "off": {"name": "plain"},
    "on": {"name": "plain", "denoise": {"enabled": True}, "color_balance": {"enabled": True}},
    "auto": {"name": "auto"},
}


def save(pixels: Pixels, rng: random.Random) -> tuple[bytes, str]:
    """Encode as a PNG or as a JPEG of quality 75 to 95; return the file and its media type."""
    if rng.random() < 0.35:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue(), "image/png"
    return to_jpeg(pixels, rng.randint(75, 95), optimize=False), "image/jpeg"


async def measure_accuracy(url: str, scenes: int, seed: int) -> None:
    exact: dict[tuple[str, str], list[bool]] = defaultdict(list)
    """By degradation and switch: whether each scene's caption is exact."""
    slots = asyncio.Semaphore(IN_FLIGHT)

    async def is_exact(
        client: httpx.AsyncClient, data: bytes, media_type: str, recipe: Any, scene: Scene
    ) -> bool:
        picture = f"data:{media_type};base64,{base64.b64encode(data).decode()}"
        async with slots:
            body = {"image_url": picture, "model": "smolvlm", "recipe": recipe}
            reply = (await client.post("/v1/caption", json=body)).raise_for_status().json()
        assert "warnings" not in reply, reply
        return bool(reply["caption"] == scene.caption())

    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        for number in range(scenes):
            rng = random.Random(seed + number)
            scene = random_scene(rng)
            pixels = draw(scene, rng)
            requests = []
            keys = []
            for degradation, degrade in DEGRADATIONS.items():
                data, media_type = save(degrade(pixels, np.random.default_rng(seed + number)), rng)
                for switch, recipe in SWITCHES.items():
                    keys.append((degradation, switch))
                    requests.append(is_exact(client, data, media_type, recipe, scene))
            for key, outcome in zip(keys, await asyncio.gather(*requests), strict=True):
                exact[key].append(outcome)
    print(f"\n| {scenes} scenes | off | on | auto | corrected / spoiled by auto |")
    print("| --- | --- | --- | --- | --- |")
    for degradation in DEGRADATIONS:
        cells = [_format_share(sum(exact[degradation, switch]), scenes) for switch in SWITCHES]
        pairs = list(zip(exact[degradation, "off"], exact[degradation, "auto"], strict=True))
        corrected = pairs.count((False, True))
        spoiled = pairs.count((True, False))
        print(f"| {degradation} | {' | '.join(cells)} | {corrected} / {spoiled} |")


def _format_share(count: int, total: int) -> str:
    low, high = wilson_interval(count, total)
    return f"{count / total:.1%} ({low:.1%} to {high:.1%})"


# --- harm


def measure_harm(photographs: Path | None, seed: int) -> None:
    print(
        "\n| pictures that need no enhancement | count | changed by auto"
        " | mean change by auto, levels | mean change by on, levels |"
    )
    print("| --- | --- | --- | --- | --- |")
    for name, pictures in _good_pictures(photographs, seed):
        changes: list[tuple[float, float]] = []
        for data in pictures:
            plain = run(data, PLAIN, LIMITS).pixels.astype(np.int16)
            auto_change = np.abs(run(data, AUTO, LIMITS).pixels - plain)
            on_change = np.abs(run(data, ON, LIMITS).pixels - plain)
            changes.append((float(auto_change.mean()), float(on_change.mean())))
        auto, on = np.array(changes).T
        changed = np.count_nonzero(auto)
        print(f"| {name} | {len(changes)} | {changed} | {auto.mean():.2f} | {on.mean():.2f} |")


def _good_pictures(photographs: Path | None, seed: int) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Yield sets of pictures that need no enhancement: a name, and the encoded files."""

    def files(count: int, make: Callable[[random.Random], Pixels]) -> Iterator[bytes]:
        for number in range(count):
            rng = random.Random(seed + number)
            yield save(make(rng), rng)[0]

    yield "drawn documents with small text, PNG and JPEG", files(200, draw_document)
    yield "drawn scenes, PNG and JPEG", files(500, lambda rng: draw(random_scene(rng), rng))
    if photographs is not None:
        paths = sorted(
            path for path in photographs.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg")
        )
        yield "photographs", (_shrink(path.read_bytes()) for path in paths)


def _shrink(data: bytes) -> bytes:
    """Return a JPEG of at most 1600 pixels a side."""
    return to_jpeg(run(data, Recipe(size=(1600, 1600)), LIMITS).pixels, 92, optimize=False)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", nargs="*", default=["speed", "accuracy", "harm"])
    parser.add_argument("--url", default=None, help="measure the server at this URL")
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--seed", type=int, default=50_000)
    parser.add_argument("--photographs", type=Path, default=None)
    arguments = parser.parse_args()
    if "speed" in arguments.tables:
        measure_speed()
    if {"speed", "accuracy"} & set(arguments.tables):
        with target(arguments.url) as url:
            if "speed" in arguments.tables:
                asyncio.run(measure_share(url))
            if "accuracy" in arguments.tables:
                asyncio.run(measure_accuracy(url, arguments.scenes, arguments.seed))
    if "harm" in arguments.tables:
        measure_harm(arguments.photographs, arguments.seed)


if __name__ == "__main__":
    main()
