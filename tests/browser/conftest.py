"""Chromium, and the page's server over a model that answers as tests say."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("playwright", reason="playwright is missing: pip install -e '.[dev]'")
from playwright.sync_api import Browser, Locator, Page, Playwright, sync_playwright

from tests.browser.live_page import open_tab, wait_until
from tests.browser.site import SCENE, LiveSite, serving
from tests.clients.browser import write_y4m

CHROMIUM = shutil.which("chromium")
TIMEOUT_MS = 15_000
ARGUMENTS = (
    "--no-sandbox",
    "--use-fake-device-for-media-stream",
    # Leads a name to this machine that, unlike localhost, no browser trusts.
    "--host-resolver-rules=MAP site.test 127.0.0.1",
)
GRANTED = "--use-fake-ui-for-media-stream"
CAMERA_FPS = 15


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if CHROMIUM is None:
        missing = pytest.mark.skip(reason="chromium is missing: apt-get install chromium")
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(missing)


@pytest.fixture(scope="session")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="session")
def browser(playwright: Playwright, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with launched(playwright, *camera_arguments(tmp_path_factory.mktemp("camera"))) as started:
        yield started


def camera_arguments(folder: Path) -> tuple[str, str]:
    """Return the arguments of a browser whose camera shows the scene, and may be used."""
    path = folder / "scene.y4m"
    write_y4m(path, [np.asarray(Image.open(SCENE).convert("RGB"))] * CAMERA_FPS, CAMERA_FPS)
    return GRANTED, f"--use-file-for-fake-video-capture={path}"


@contextmanager
def launched(playwright: Playwright, *arguments: str) -> Iterator[Browser]:
    started = playwright.chromium.launch(executable_path=CHROMIUM, args=[*ARGUMENTS, *arguments])
    yield started
    started.close()


@pytest.fixture(scope="session")
def running() -> Iterator[LiveSite]:
    with serving() as site:
        yield site


@pytest.fixture
def site(running: LiveSite) -> LiveSite:
    running.service.reset()
    running.status.reset()
    return running


@pytest.fixture
def page(browser: Browser, site: LiveSite) -> Iterator[Page]:
    """The page, opened. Fails if a script fails, or if a request leaves the server."""
    yield from opened(browser, site.url)


def opened(browser: Browser, url: str) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.grant_permissions(["clipboard-read", "clipboard-write", "camera"])
    page = context.new_page()
    page.set_default_timeout(TIMEOUT_MS)
    errors: list[str] = []
    elsewhere: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on(
        "console",
        lambda message: errors.append(message.text) if "Content Security" in message.text else None,
    )
    ours = (url, url.replace("http", "ws", 1), "blob:", "data:")
    page.on(
        "request",
        lambda request: None if request.url.startswith(ours) else elsewhere.append(request.url),
    )
    page.goto(url)
    yield page
    context.close()
    assert not errors
    assert not elsewhere


@contextmanager
def visiting(browser: Browser, **config: Any) -> Iterator[tuple[LiveSite, Page, Locator]]:
    """Open the tab "Live" of a server of its own."""
    with serving(**config) as site:
        for page in opened(browser, site.url):
            yield site, page, open_tab(page)


@pytest.fixture
def live(page: Page, site: LiveSite) -> Iterator[Locator]:
    """The tab "Live". Fails if a session outlives the page."""
    yield open_tab(page)
    page.goto("about:blank")
    wait_until(lambda: site.sessions.count == 0)


@pytest.fixture
def over_socket(browser: Browser) -> Iterator[tuple[LiveSite, Locator]]:
    """The tab "Live" of a server without WebRTC."""
    with visiting(browser, has_webrtc=False) as (site, _, live):
        yield site, live
