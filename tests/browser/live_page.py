"""The tab "Live", and what tests do with it."""

from __future__ import annotations

import time
from collections.abc import Callable

from playwright.sync_api import Download, Locator, Page, expect

from raylens.realtime.overlay import Pixels
from tests.browser.site import LiveSite
from tests.clients.browser import read_data_url

WEBRTC = "Live over WebRTC"
SOCKET = "Live over WebSocket"
"""States of the tab."""
CONNECT_MS = 30_000
WAIT_S = 20.0


def open_tab(page: Page) -> Locator:
    page.get_by_role("tab", name="Live").click()
    return page.locator(".live")


def start(live: Locator, state: str = WEBRTC) -> None:
    live.get_by_role("button", name="Start", exact=True).click()
    expect(live.locator(".state")).to_have_text(state, timeout=CONNECT_MS)


def stop(live: Locator) -> None:
    live.get_by_role("button", name="Stop", exact=True).click()


def press(live: Locator, name: str) -> None:
    live.get_by_role("button", name=name, exact=True).click()


def answer(live: Locator) -> Locator:
    return live.get_by_test_id("live-answer")


def saved(page: Page, click: Callable[[], None]) -> Download:
    with page.expect_download() as caught:
        click()
    return caught.value


def frame_of(live: Locator) -> Pixels:
    """Return the pixels of the video that is shown."""
    script = """async (video) => {
      while (!video.videoWidth) await new Promise((resolve) => setTimeout(resolve, 50))
      const canvas = document.createElement('canvas')
      Object.assign(canvas, { width: video.videoWidth, height: video.videoHeight })
      canvas.getContext('2d').drawImage(video, 0, 0)
      return canvas.toDataURL('image/png')
    }"""
    return read_data_url(live.locator("video").evaluate(script))


def bounds(mark: Locator, frame: Locator) -> tuple[float, float, float, float]:
    """Return where a mark is, in fractions of the frame."""
    box, outer = mark.bounding_box(), frame.bounding_box()
    assert box is not None
    assert outer is not None
    left, top = (box["x"] - outer["x"]) / outer["width"], (box["y"] - outer["y"]) / outer["height"]
    return left, top, left + box["width"] / outer["width"], top + box["height"] / outer["height"]


def wait_until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def count_sockets(site: LiveSite) -> int:
    return site.shared.sessions.held("127.0.0.1")
