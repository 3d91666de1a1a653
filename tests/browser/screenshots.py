"""Pictures of the page: ``python -m tests.browser.screenshots FOLDER``."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from raylens.core.errors import ModelFailed
from tests.browser.conftest import camera_arguments, launched
from tests.browser.live_page import open_tab, start, stop
from tests.browser.site import Site, serving

WIDTHS = {390: 844, 820: 1180, 1440: 900}


def take(browser: Browser, site: Site, folder: Path, width: int, theme: str) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": WIDTHS[width]},
        color_scheme=theme,  # type: ignore[arg-type]
    )
    page = context.new_page()
    page.goto(site.url)
    page.get_by_text("Ready").wait_for()

    def shoot(state: str) -> None:
        page.screenshot(path=folder / f"{state}_{width}_{theme}.png", full_page=True)

    site.service.reset()
    shoot("empty")
    page.get_by_role("button", name="Shapes").click()
    page.locator(".frame img").wait_for()
    site.service.gate.clear()
    page.get_by_role("button", name="Run").click()
    page.get_by_test_id("answer").wait_for()
    shoot("working")
    site.service.warnings = ("denoise: skipped, since the picture is large",)
    site.service.gate.set()
    page.locator("dd", has_text="in,").wait_for()
    _ask(page, "Detect")
    page.locator(".mark").first.wait_for()
    page.locator(".mark").last.hover()
    shoot("done")
    page.get_by_role("tab", name="Preprocessing").click()
    page.locator(".side-by-side").wait_for()
    shoot("preprocessing")
    page.get_by_role("tab", name="Code").click()
    shoot("code")
    page.get_by_role("tab", name="Answer").click()
    site.service.error = ModelFailed("out of memory")
    page.get_by_role("button", name="Cat").click()
    page.locator("img[alt*='cat.jpg']").wait_for()
    _ask(page, "Ask")
    page.get_by_role("alert").wait_for()
    page.get_by_text("More settings").click()
    shoot("failed")
    page.get_by_role("button", name="From URL").click()
    page.get_by_text("Key", exact=True).click()
    shoot("menus")
    page.keyboard.press("Escape")
    _shoot_live(page, site, shoot)
    page.get_by_role("tab", name="Status").click()
    page.get_by_role("heading", name="Server", exact=True).wait_for()
    shoot("status")
    context.close()


def _shoot_live(page: Page, site: Site, shoot: Callable[[str], None]) -> None:
    live = open_tab(page)
    shoot("live_idle")
    site.service.reset()
    start(live)
    live.get_by_role("list", name="Events").wait_for()
    shoot("live")
    live.get_by_role("radio", name="Caption").check()
    live.get_by_text("More settings").click()
    live.get_by_role("list", name="Answers").wait_for()
    shoot("live_caption")
    site.sessions.stop("this part of the server is about to stop")
    live.get_by_role("alert").wait_for()
    shoot("live_waiting")
    stop(live)


def _ask(page: Page, task: str) -> None:
    page.get_by_role("radio", name=task).check()
    page.get_by_role("button", name="Run").click()


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as scratch,
        serving() as site,
        sync_playwright() as playwright,
        launched(playwright, *camera_arguments(Path(scratch))) as browser,
    ):
        for width in WIDTHS:
            for theme in ("light", "dark"):
                take(browser, site, folder, width, theme)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
