"""Pictures of the page: ``python -m tests.browser.screenshots FOLDER``."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import Browser, Page, sync_playwright

from raylens.core.errors import ModelFailed
from tests.browser.conftest import camera_arguments, launched
from tests.browser.job_site import serving_jobs
from tests.browser.jobs_page import states, submit
from tests.browser.live_page import open_tab, start, stop
from tests.browser.site import ROOT, SCENE, LiveSite, Site, serving
from tests.browser.test_chat import (
    CLIP,
    answers,
    attach,
    attached,
    open_chat,
    say,
    wait_until_done,
)
from tests.browser.test_compare import run_both, side

EXAMPLES = ROOT / "raylens" / "playground" / "examples"
WIDTHS = {390: 844, 820: 1180, 1440: 900}


def take(browser: Browser, site: LiveSite, folder: Path, width: int, theme: str) -> None:
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
    live_video(page, site, shoot)
    page.get_by_role("tab", name="Status").click()
    page.get_by_role("heading", name="Server", exact=True).wait_for()
    shoot("status")
    site.service.reset()
    compare(page, site, shoot)
    chat(page, site, shoot)
    context.close()


def live_video(page: Page, site: LiveSite, shoot: Callable[[str], None]) -> None:
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


def take_jobs(browser: Browser, site: Site, folder: Path, width: int, theme: str) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": WIDTHS[width]},
        color_scheme=theme,  # type: ignore[arg-type]
    )
    page = context.new_page()
    page.goto(f"{site.url}#jobs")
    page.locator(".jobs").get_by_text("Live", exact=True).wait_for()
    jobs = page.locator(".jobs")

    def shoot(state: str, is_whole: bool = True) -> None:
        page.screenshot(path=folder / f"jobs_{state}_{width}_{theme}.png", full_page=is_whole)

    def choose(*files: Path) -> None:
        page.locator(".uploads input:not([webkitdirectory])").set_input_files(list(files))
        page.get_by_text("ready").last.wait_for()

    shoot("empty")
    examples = [EXAMPLES / name for name in ("scene.png", "cat.jpg", "coffee.jpg")]
    choose(*examples * 3, EXAMPLES / "LICENSES.txt")
    page.get_by_text("1 file was refused").click()
    shoot("chosen")
    jobs.get_by_role("radio", name="Detect").check()
    jobs.get_by_label("Object to find").fill("circle")
    site.service.gate.clear()
    submit(page)
    page.locator(".state.running").first.wait_for()
    shoot("working")
    site.service.gate.set()
    states(page, succeeded=9)
    site.service.error = ModelFailed("out of memory")
    jobs.get_by_role("radio", name="Caption").check()
    choose(examples[1])
    submit(page)
    states(page, failed=1)
    page.locator(".job-check").nth(1).check()
    page.locator(".job-check").nth(2).check()
    shoot("done")
    page.locator(".job-picture").nth(1).click()
    page.locator("dialog .mark").first.wait_for()
    shoot("opened", is_whole=False)
    context.close()


def compare(page: Page, site: Site, shoot: Callable[[str], None]) -> None:
    page.get_by_role("tab", name="Compare").click()
    shoot("compare_empty")
    page.get_by_role("button", name="Shapes").click()
    page.locator(".compare .frame img").wait_for()
    site.service.gate.clear()
    run_both(page)
    side(page, 1).get_by_test_id("answer").wait_for()
    shoot("compare_working")
    site.service.gate.set()
    page.get_by_text("The answers are the same.").wait_for()
    shoot("compare_texts")
    page.get_by_role("radio", name="Detect").check()
    run_both(page)
    side(page, 1).locator(".mark").first.wait_for()
    shoot("compare_boxes")
    site.service.error = ModelFailed("out of memory")
    run_both(page)
    page.get_by_role("alert").last.wait_for()
    shoot("compare_failed")
    site.service.reset()


def chat(page: Page, site: Site, shoot: Callable[[str], None]) -> None:
    open_chat(page)
    shoot("chat_empty")
    attach(page, SCENE, CLIP)
    attached(page).nth(1).wait_for()
    shoot("chat_draft")
    say(page, "What do you see?")
    wait_until_done(page)
    site.service.gate.clear()
    say(page, "And what color is the square?")
    answers(page).nth(1).wait_for()
    shoot("chat_working")
    site.service.gate.set()
    wait_until_done(page)
    shoot("chat_done")
    page.get_by_role("tab", name="Code").last.click()
    shoot("chat_code")
    page.get_by_role("tab", name="Chat").last.click()
    site.service.error = ModelFailed("out of memory")
    say(page, "And the circle?")
    page.get_by_role("alert").last.wait_for()
    shoot("chat_failed")
    site.service.reset()


def _ask(page: Page, task: str) -> None:
    page.get_by_role("radio", name=task).check()
    page.get_by_role("button", name="Run").click()


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (
        TemporaryDirectory() as scratch,
        serving() as site,
        sync_playwright() as playwright,
        launched(playwright, *camera_arguments(Path(scratch))) as browser,
    ):
        for width in WIDTHS:
            for theme in ("light", "dark"):
                take(browser, site, folder, width, theme)
                with TemporaryDirectory() as queue, serving_jobs(Path(queue)) as job_site:
                    take_jobs(browser, job_site, folder, width, theme)


if __name__ == "__main__":
    parser = ArgumentParser(description="Take pictures of every state of the page.")
    parser.add_argument("folder", type=Path, help="where they go; made if it is missing")
    main(parser.parse_args().folder)
