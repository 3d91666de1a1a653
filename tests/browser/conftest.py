"""Chromium, and the page's server over a model that answers as tests say."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

pytest.importorskip("playwright", reason="playwright is missing: pip install -e '.[dev]'")
from playwright.sync_api import Browser, Page, sync_playwright

from tests.browser.site import Site, serving

CHROMIUM = shutil.which("chromium")
TIMEOUT_MS = 15_000
CAMERA = ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if CHROMIUM is None:
        missing = pytest.mark.skip(reason="chromium is missing: apt-get install chromium")
        for item in items:
            if item.path.parent.name == "browser":
                item.add_marker(missing)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", *CAMERA]
        )
        yield started
        started.close()


@pytest.fixture(scope="session")
def running() -> Iterator[Site]:
    with serving() as site:
        yield site


@pytest.fixture
def site(running: Site) -> Site:
    running.service.reset()
    running.status.reset()
    return running


@pytest.fixture
def page(browser: Browser, site: Site) -> Iterator[Page]:
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
    ours = (url, "blob:", "data:")
    page.on(
        "request",
        lambda request: None if request.url.startswith(ours) else elsewhere.append(request.url),
    )
    page.goto(url)
    yield page
    context.close()
    assert not errors
    assert not elsewhere
