"""axe-core finds nothing serious on the page, in each of its states."""

from __future__ import annotations

import subprocess

import pytest
from playwright.sync_api import Page, expect

from raylens.core.errors import ModelFailed
from tests.browser import axe
from tests.browser.live_page import answer, open_tab, press, start, stop
from tests.browser.site import Site
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
    page.get_by_role("tab", name="Status").click()
    page.get_by_role("heading", name="Server", exact=True).wait_for()
    found["status"] = axe.violations(page)
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
