"""A browser shows its camera's video with words and boxes."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raylens.realtime.overlay import GREEN
from testing.moving_circle import RED, draw_circle, find, iou
from tests.clients.browser import Page, open_page, read_data_url, write_y4m

pytestmark = [
    pytest.mark.clients,
    pytest.mark.skipif(
        shutil.which("chromium") is None, reason="chromium is missing: apt-get install chromium"
    ),
]

FPS = 15
LEFTS = [*range(40, 440, 6), *range(440, 40, -6)]
"""Where the circle is, there and back, since the video is shown in a loop."""
TIMEOUT_S = 60.0
POLL_S = 0.1
PICTURES = 12
SCRIPT = (Path(__file__).parent / "browser.js").read_text()


async def wait_for(page: Page, script: str, holds: Callable[[Any], Any] = bool) -> Any:
    """Return the value of an expression as soon as it is as expected."""
    async with asyncio.timeout(TIMEOUT_S):
        while not holds(value := await page.run(script)):
            await asyncio.sleep(POLL_S)
    return value


def results_of(field: str) -> str:
    return f"live.messages.filter(({{ type, {field} }}) => type === 'result' && {field})"


async def read_overlaps(page: Page) -> list[float]:
    """Return how well the boxes of some pictures fit the circle."""
    overlaps: list[float] = []
    async with asyncio.timeout(TIMEOUT_S):
        while len(overlaps) < PICTURES:
            url = await page.run("live.picture()")
            pixels = read_data_url(url)
            # The label is above the box, and as green.
            box, shape = find(pixels[175:], GREEN), find(pixels[175:], RED)
            if box is not None and shape is not None:
                overlaps.append(iou(box, shape))
            await asyncio.sleep(POLL_S)
    return overlaps


async def test_a_browser_shows_words_and_boxes(server: str, tmp_path: Path) -> None:
    camera = tmp_path / "camera.y4m"
    write_y4m(camera, map(draw_circle, LEFTS), FPS)
    async with open_page(f"{server}/docs", tmp_path / "browser", camera) as page:
        await wait_for(page, "isSecureContext && document.readyState === 'complete'")
        await page.run(f"({SCRIPT})()")
        await wait_for(page, "live.state()", lambda state: state == "connected")
        boxes = await wait_for(page, results_of("objects"))
        assert [len(result["objects"]) for result in boxes[:1]] == [1]
        await wait_for(page, "live.picture()")
        overlaps = sorted(await read_overlaps(page))
        assert overlaps[1] >= 0.6  # one may be of a frame that has lost packets
        assert overlaps[PICTURES // 2] >= 0.8

        await page.run("live.change({ feature: 'query', question: 'What color is the circle?' })")
        words = await wait_for(page, results_of("text"))
        assert words[0]["text"] == "red"
        await wait_for(page, "live.picture()", lambda url: has_caption(url))

        assert await page.run("live.end()") == 204
        ended = "live.messages.find(({ type }) => type === 'stream_stopped')"
        assert (await wait_for(page, ended))["error_message"] == "the client has ended it"


def has_caption(url: str) -> bool:
    """Whether there is text, in black or white, at the bottom, where the picture is gray."""
    strip = read_data_url(url)[-20:].astype(int)
    return bool(strip.max() > 235 or strip.min() < 60)
