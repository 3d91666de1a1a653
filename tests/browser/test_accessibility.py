"""axe-core finds nothing serious on the page, in each of its states."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from raylens.core.errors import ModelFailed
from tests.browser import axe
from tests.browser.job_site import serving_jobs
from tests.browser.jobs_page import opened_jobs, states, submit, write
from tests.browser.live_page import answer, open_tab, press, start, stop
from tests.browser.site import SCENE, Site
from tests.browser.test_chat import CLIP, attach, attached, open_chat, say, wait_until_done
from tests.browser.test_compare import open_tab as compare_tab
from tests.browser.test_compare import run_both
from tests.browser.test_try import choose_task, run, wait_for_picture

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module", autouse=True)
def _axe() -> None:
    try:
        axe.read_script()
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"axe-core can't be installed by npm: {error}")


@pytest.mark.parametrize("width", [360, 390, 820, 1440])
def test_nothing_sticks_out_of_the_window(page: Page, site: Site, width: int) -> None:
    def overflow() -> int:
        return int(page.evaluate("document.scrollingElement.scrollWidth - innerWidth"))

    page.set_viewport_size({"width": width, "height": 800})
    assert overflow() <= 0
    page.get_by_role("button", name="Shapes").click()
    wait_for_picture(page, "scene.png")
    page.get_by_text("More settings").click()
    page.get_by_role("button", name="From URL").click()
    choose_task(page, "Detect")
    run(page)
    expect(page.locator(".mark")).to_have_count(2)
    for view in ("Answer", "Preprocessing", "JSON", "Code"):
        page.get_by_role("tab", name=view).click()
        assert overflow() <= 0, view
    page.get_by_text("Key", exact=True).click()
    popup = page.locator(".popup").bounding_box()
    assert popup is not None
    assert popup["x"] >= 0
    assert popup["x"] + popup["width"] <= width
    live = open_tab(page)
    live.get_by_text("More settings").click()
    start(live)
    expect(live.get_by_role("list", name="Events")).to_be_visible()
    assert overflow() <= 0
    stop(live)
    page.get_by_role("tab", name="Status").click()
    page.get_by_role("heading", name="Server", exact=True).wait_for()
    assert overflow() <= 0


@pytest.mark.parametrize("width", [360, 390, 820, 1440])
def test_nothing_sticks_out_of_a_comparison_and_a_chat(page: Page, site: Site, width: int) -> None:
    def overflow() -> int:
        return int(page.evaluate("document.scrollingElement.scrollWidth - innerWidth"))

    page.set_viewport_size({"width": width, "height": 800})
    compare_tab(page)
    choose_task(page, "Detect")
    page.get_by_label("What differs").select_option("Several settings")
    run_both(page)
    expect(page.locator(".sides .mark")).to_have_count(4)
    for view in ("Answer", "Preprocessing", "JSON", "Code"):
        page.get_by_role("tab", name=view).first.click()
        assert overflow() <= 0, view
    open_chat(page)
    attach(page, SCENE, CLIP)
    expect(attached(page)).to_have_count(2)
    site.service.words = ("a-long-word-without-an-end" * 20,)
    say(page, "and-a-long-question" * 20)
    wait_until_done(page)
    for view in ("JSON", "Code", "Chat"):
        page.get_by_role("tab", name=view).last.click()
        assert overflow() <= 0, view


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_no_state_has_a_serious_violation(page: Page, site: Site, theme: str, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
    found = {"empty": axe.violations(page)}
    page.get_by_role("button", name="Cat").click()
    wait_for_picture(page, "cat.jpg")
    page.get_by_text("More settings").click()
    site.service.gate.clear()
    site.service.warnings = ("denoise: skipped",)
    run(page)
    expect(page.get_by_test_id("answer")).to_have_text("a")
    found["working"] = axe.violations(page)
    site.service.gate.set()
    expect(page.locator(".figures")).to_contain_text("out")
    choose_task(page, "Detect")
    run(page)
    expect(page.locator(".mark")).to_have_count(2)
    found["done"] = axe.violations(page)
    for view in ("Preprocessing", "JSON", "Code"):
        page.get_by_role("tab", name=view).click()
        page.locator(".result pre, .side-by-side").first.wait_for()
        found[view] = axe.violations(page)
    page.get_by_role("tab", name="Answer").click()
    site.service.error = ModelFailed("out of memory")
    run(page)
    expect(page.get_by_role("alert")).to_be_visible()
    found["failed"] = axe.violations(page)
    page.get_by_text("Key", exact=True).click()
    page.get_by_role("button", name="From URL").click()
    found["menus"] = axe.violations(page)
    page.get_by_label("Web address of a picture").fill("cat.jpg")
    page.get_by_label("Web address of a picture").press("Enter")
    page.locator(".picture").get_by_role("alert").wait_for()
    found["refused address"] = axe.violations(page)
    page.get_by_role("tab", name="Status").click()
    page.get_by_role("heading", name="Server", exact=True).wait_for()
    found["status"] = axe.violations(page)
    assert {state: items for state, items in found.items() if items} == {}


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_no_comparison_has_a_serious_violation(
    page: Page, site: Site, theme: str, width: int
) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
    page.get_by_role("tab", name="Compare").click()
    found = {"empty": axe.violations(page)}
    compare_tab(page)
    page.locator(".compare").get_by_text("More settings").click()
    site.service.gate.clear()
    run_both(page)
    expect(page.locator(".sides").get_by_test_id("answer")).to_have_text(["a", "a"])
    found["working"] = axe.violations(page)
    site.service.gate.set()
    expect(page.locator(".verdict")).to_contain_text("The answers are the same.")
    found["texts"] = axe.violations(page)
    choose_task(page, "Detect")
    run_both(page)
    expect(page.locator(".sides .mark")).to_have_count(4)
    found["boxes"] = axe.violations(page)
    site.service.error = ModelFailed("out of memory")
    run_both(page)
    expect(page.get_by_role("alert")).to_have_count(2)
    found["failed"] = axe.violations(page)
    assert {state: items for state, items in found.items() if items} == {}


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_no_chat_has_a_serious_violation(page: Page, site: Site, theme: str, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
    open_chat(page)
    found = {"empty": axe.violations(page)}
    page.locator("#chat-model").evaluate("(select) => { select.closest('details').open = true }")
    page.locator("#chat-model").select_option("moondream")
    attach(page, SCENE, CLIP)
    expect(page.locator(".composer .notice")).to_be_visible()
    found["refused"] = axe.violations(page)
    page.locator("#chat-model").select_option("smolvlm")
    site.service.gate.clear()
    say(page, "Hi")
    expect(page.locator(".log").get_by_test_id("answer")).to_have_text("a")
    found["working"] = axe.violations(page)
    site.service.gate.set()
    wait_until_done(page)
    page.get_by_role("button", name="Edit").click()
    found["editing"] = axe.violations(page)
    for view in ("JSON", "Code", "Chat"):
        page.get_by_role("tab", name=view).last.click()
        found[view] = axe.violations(page)
    site.service.error = ModelFailed("out of memory")
    say(page, "Again")
    expect(page.get_by_role("alert")).to_be_visible()
    found["failed"] = axe.violations(page)
    assert {state: items for state, items in found.items() if items} == {}


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_no_state_of_the_jobs_has_a_serious_violation(
    browser: Browser, tmp_path: Path, theme: str, width: int
) -> None:
    found = {}

    def check(page: Page, state: str) -> None:
        found[state] = axe.violations(page)
        overflow = page.evaluate("document.scrollingElement.scrollWidth - innerWidth")
        assert overflow <= 0, state

    with serving_jobs(tmp_path / "queue") as site:
        for page in opened_jobs(browser, site.url):
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
            check(page, "empty")
            (tmp_path / "notes.txt").write_text("hello")
            chosen = [write(tmp_path, f"{number}.png", number) for number in range(6)]
            page.locator(".uploads input:not([webkitdirectory])").set_input_files(
                [*chosen, tmp_path / "notes.txt"]
            )
            page.get_by_text("6 pictures ready").wait_for()
            page.get_by_text("1 file was refused").click()
            page.locator(".jobs").get_by_text("More settings").click()
            page.get_by_text("Webhook and priority").click()
            check(page, "chosen")
            page.get_by_label("Webhook secret").fill("short")
            submit(page)
            page.locator(".settings").get_by_role("alert").wait_for()
            check(page, "refused setting")
            page.get_by_label("Webhook secret").fill("")
            site.service.gate.clear()
            submit(page)
            states(page, running=2, queued=4)
            check(page, "working")
            site.service.error = ModelFailed("out of memory")
            site.service.gate.set()
            states(page, failed=4, succeeded=2)
            page.get_by_role("button", name="Select all 6").click()
            page.get_by_role("button", name="Remove 6").click()
            check(page, "done")
            page.get_by_role("button", name="Keep").click()
            page.locator(".job-picture").first.click()
            for view in ("Details", "JSON", "Webhooks"):
                page.get_by_role("tab", name=view).click()
                check(page, view)
    assert {state: items for state, items in found.items() if items} == {}


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_no_state_of_live_video_has_a_serious_violation(
    page: Page, site: Site, theme: str, width: int
) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
    live = open_tab(page)
    found = {"idle": axe.violations(page)}
    start(live)
    live.get_by_text("More settings").click()
    expect(live.get_by_role("list", name="Events")).to_be_visible()
    found["live"] = axe.violations(page)
    press(live, "Mirror")
    live.get_by_role("radio", name="Caption").check()
    expect(live.get_by_role("list", name="Answers")).to_be_visible()
    found["mirror"] = axe.violations(page)
    site.service.error = ModelFailed("out of memory")
    expect(live.get_by_role("alert")).to_be_visible()
    press(live, "Pause")
    found["failed"] = axe.violations(page)
    stop(live)
    expect(answer(live)).to_be_visible()
    found["ended"] = axe.violations(page)
    assert {state: items for state, items in found.items() if items} == {}
