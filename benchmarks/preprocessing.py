"""What preprocessing costs, what it wins, and what it spoils.

``python -m benchmarks.preprocessing`` prints three tables:

- *speed*: pictures a second by recipe and size in one thread, against Pillow doing the same in one thread, and the
  share of a caption request that preprocessing takes;
- *accuracy*: how often the pocket model captions a scene exactly, over HTTP, on clean and degraded scenes with
  enhancement off, on and auto; *off* is the baseline;
- *harm*: how far *on* and *auto* change pictures that need nothing; ``--photographs`` names a folder of photographs.
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

from benchmarks.documents import document
from benchmarks.photograph import photograph
from benchmarks.pocket import wilson
from benchmarks.target import target
from models.pocket.drawing import draw, encode
from models.pocket.scenes import Scene, random_scene
from preprocessing.decode import DecodeLimits
from preprocessing.encode import to_jpeg
from preprocessing.pipeline import run
from raylens.core.recipe import AUTO, ENHANCED, PLAIN, ColorBalance, Denoise, Recipe

Pixels = NDArray[np.uint8]
LIMITS = DecodeLimits(max_bytes=10**8, max_pixels=10**8, min_side=1, max_side=20_000)
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
"""Every step, with the one denoising filter that Pillow has too."""
RECIPES = {
    "plain": PLAIN,
    "1024 pixels": Recipe(size=(1024, 1024)),
    "every step, median": ALL_STEPS,
    "auto": AUTO,
    "enhanced (bilateral)": ENHANCED,
}


def with_pillow(data: bytes, recipe: Recipe) -> Pixels:
    """The same steps in plain Pillow, as well as it can: decoded at a part of its size, as
    ``thumbnail`` does."""
    opened = Image.open(io.BytesIO(data))
    if not recipe.smart_crop:
        opened.draft("RGB", recipe.size)
    picture = ImageOps.exif_transpose(opened).convert("RGB")
    if recipe.smart_crop:
        corner = Image.new("RGB", picture.size, picture.getpixel((0, 0)))
        picture = picture.crop(ImageChops.difference(picture, corner).point(_OVER_14).getbbox())
    picture.thumbnail(recipe.size, Image.Resampling.BOX)
    if recipe.denoise.enabled:
        picture = picture.filter(ImageFilter.MedianFilter(3))
    if recipe.color_balance.enabled:
        balance = recipe.color_balance
        lightness = [min(255, round(v * balance.l_channel_boost)) for v in range(256)]
        color = [
            min(255, max(0, round(128 + (v - 128) * balance.ab_channel_boost))) for v in range(256)
        ]
        lab = _transformed(picture, _TO_LAB).split()
        bands = [
            band.point(table) for band, table in zip(lab, (lightness, color, color), strict=True)
        ]
        picture = _transformed(Image.merge("LAB", bands), _FROM_LAB)
    return np.asarray(picture)


def _transformed(picture: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    done = ImageCms.applyTransform(picture, transform)
    assert done is not None
    return done


_OVER_14 = [255 * (level > 14) for level in range(256)] * 3
_SRGB, _LAB = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
_TO_LAB = ImageCms.buildTransform(_SRGB, _LAB, "RGB", "LAB")
_FROM_LAB = ImageCms.buildTransform(_LAB, _SRGB, "LAB", "RGB")


def seconds(work: Callable[[], object], budget: float = 1.0) -> float:
    """The median time of one call, over as many as the budget holds, three at least."""
    work()
    times: list[float] = []
    while len(times) < 3 or sum(times) < budget:
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return median(times)


def measure_speed() -> None:
    cv2.setNumThreads(1)
    print("| recipe | picture | ms | pictures/s | Pillow, pictures/s | times Pillow |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, recipe in RECIPES.items():
        for width, height in SIZES:
            data = photograph(width, height, 1)
            ours = seconds(partial(run, data, recipe, LIMITS))
            row = f"| {name} | {width}×{height} JPEG | {1000 * ours:.1f} | {1 / ours:.1f} |"
            if recipe is AUTO or recipe is ENHANCED:
                print(row, "Pillow has no such filter | |")
                continue
            theirs = seconds(partial(with_pillow, data, recipe))
            print(row, f"{1 / theirs:.1f} | {theirs / ours:.1f} |")


async def measure_share(url: str) -> None:
    """How much of a caption request, one at a time, is preprocessing."""
    print("\n| picture | recipe | caption request, p50 ms | preprocessing, p50 ms | share |")
    print("| --- | --- | --- | --- | --- |")
    scene = encode(draw(random_scene(random.Random(3), 512), random.Random(3)), random.Random(3))[0]
    files = {"scene of up to 512 pixels": scene, "1920×1080 JPEG": photograph(1920, 1080, 1)}
    files["4000×3000 JPEG"] = photograph(4000, 3000, 1)
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        for name, data in files.items():
            for recipe in ("plain", "auto", "enhanced"):
                whole, part = [], []
                for _ in range(15):
                    form: dict[str, Any] = {"files": {"file": data}, "data": {"recipe": recipe}}
                    started = time.perf_counter()
                    (await client.post("/v1/caption", **form)).raise_for_status()
                    whole.append(1000 * (time.perf_counter() - started))
                    shown = (await client.post("/v1/preprocess", **form)).raise_for_status().json()
                    part.append(
                        sum(step["ms"] for step in shown["steps"] if step["name"] != "encode")
                    )
                share = median(part) / median(whole)
                print(
                    f"| {name} | {recipe} | {median(whole):.0f} | {median(part):.1f} | {share:.0%} |"
                )


# --- accuracy


def noisy(pixels: Pixels, rng: np.random.Generator, sigma: float = 25) -> Pixels:
    return _levels(pixels + rng.normal(0, sigma, pixels.shape))


def _levels(values: NDArray[Any]) -> Pixels:
    levels: Pixels = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return levels


DEGRADATIONS: dict[str, Callable[[Pixels, np.random.Generator], Pixels]] = {
    "clean": lambda pixels, rng: pixels,
    "noisy (σ = 25)": noisy,
    "warm cast (× 1.25, 1, 0.7)": lambda pixels, rng: _levels(pixels * np.array((1.25, 1.0, 0.7))),
    "cold cast (× 0.75, 0.95, 1.3)": lambda pixels, rng: _levels(
        pixels * np.array((0.75, 0.95, 1.3))
    ),
    "dark (× 0.3)": lambda pixels, rng: _levels(pixels * 0.3),
    "low contrast (× 0.2 around 128)": lambda pixels, rng: _levels(128 + (pixels - 128.0) * 0.2),
}
SWITCHES: dict[str, Any] = {
    "off": {"name": "plain"},
    "on": {"name": "plain", "denoise": {"enabled": True}, "color_balance": {"enabled": True}},
    "auto": {"name": "auto"},
}


def save(pixels: Pixels, rng: random.Random) -> tuple[bytes, str]:
    """A file and its media type: a PNG, or a JPEG of quality 75 to 95."""
    if rng.random() < 0.35:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue(), "image/png"
    return to_jpeg(pixels, rng.randint(75, 95), optimize=False), "image/jpeg"


async def measure_accuracy(url: str, scenes: int, seed: int) -> None:
    right: dict[tuple[str, str], list[bool]] = defaultdict(list)
    places = asyncio.Semaphore(IN_FLIGHT)

    async def ask(
        client: httpx.AsyncClient, data: bytes, media_type: str, recipe: Any, scene: Scene
    ) -> bool:
        picture = f"data:{media_type};base64,{base64.b64encode(data).decode()}"
        async with places:
            body = {"image_url": picture, "model": "smolvlm", "recipe": recipe}
            reply = (await client.post("/v1/caption", json=body)).raise_for_status().json()
        assert "warnings" not in reply, reply
        return bool(reply["caption"] == scene.caption())

    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        for number in range(scenes):
            rng = random.Random(seed + number)
            scene = random_scene(rng)
            drawn = draw(scene, rng)
            asked = []
            for degradation, degrade in DEGRADATIONS.items():
                file = save(degrade(drawn, np.random.default_rng(seed + number)), rng)
                asked += [(degradation, name, file, recipe) for name, recipe in SWITCHES.items()]
            answers = await asyncio.gather(
                *(ask(client, *file, recipe, scene) for _, _, file, recipe in asked)
            )
            for (degradation, name, _, _), answer in zip(asked, answers, strict=True):
                right[degradation, name].append(answer)
    print(f"\n| {scenes} scenes | off | on | auto | auto mends / spoils |")
    print("| --- | --- | --- | --- | --- |")
    for degradation in DEGRADATIONS:
        cells = []
        for name in SWITCHES:
            hits = sum(right[degradation, name])
            low, high = wilson(hits, scenes)
            cells.append(f"{hits / scenes:.1%} ({low:.1%} to {high:.1%})")
        pairs = list(zip(right[degradation, "off"], right[degradation, "auto"], strict=True))
        print(
            f"| {degradation} | {' | '.join(cells)} | {pairs.count((False, True))} / {pairs.count((True, False))} |"
        )


# --- harm


def measure_harm(photographs: Path | None, seed: int) -> None:
    print(
        "\n| pictures that need nothing | count | changed by auto | by auto, levels | by on, levels |"
    )
    print("| --- | --- | --- | --- | --- |")
    for name, pictures in _good_pictures(photographs, seed):
        changes: list[tuple[float, float]] = []
        for data in pictures:
            plain = run(data, PLAIN, LIMITS).pixels.astype(np.int16)
            automatic = np.abs(run(data, AUTO, LIMITS).pixels - plain)
            always = np.abs(run(data, ON, LIMITS).pixels - plain)
            changes.append((float(automatic.mean()), float(always.mean())))
        auto, on = np.array(changes).T
        print(
            f"| {name} | {len(changes)} | {np.count_nonzero(auto)} | {auto.mean():.2f} | {on.mean():.2f} |"
        )


def _good_pictures(photographs: Path | None, seed: int) -> Iterator[tuple[str, Iterator[bytes]]]:
    def files(count: int, make: Callable[[random.Random], Pixels]) -> Iterator[bytes]:
        for number in range(count):
            rng = random.Random(seed + number)
            yield save(make(rng), rng)[0]

    yield "drawn documents with small text, PNG and JPEG", files(200, document)
    yield "drawn scenes, PNG and JPEG", files(500, lambda rng: draw(random_scene(rng), rng))
    if photographs is not None:
        paths = sorted(
            path for path in photographs.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg")
        )
        yield "photographs", (_small(path.read_bytes()) for path in paths)


def _small(data: bytes) -> bytes:
    return to_jpeg(run(data, Recipe(size=(1600, 1600)), LIMITS).pixels, 92, optimize=False)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", nargs="*", default=["speed", "accuracy", "harm"])
    parser.add_argument("--url", default=None, help="a server that runs already")
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
