"""The tab "Compare", used as a person does."""

from __future__ import annotations

import json
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from raylens.core.errors import ModelFailed
from raylens.core.keys import hash_key
from raylens.core.types import Caption, Detect, Length
from tests.browser.conftest import opened
from tests.browser.site import CAPTION, CONFIG, Site, find_red, serving
from tests.browser.test_try import choose_task, draw, drop, wait_for_picture

pytestmark = pytest.mark.browser

MARGIN = 0.01


def side(page: Page, index: int) -> Locator:
    return page.locator(f"#compare-{index}")


def answer(page: Page, index: int) -> Locator:
    return side(page, index).get_by_test_id("answer")


def open_tab(page: Page) -> None:
    page.get_by_role("tab", name="Compare").click()
    page.locator(".compare").get_by_role("button", name="Shapes").click()
    page.locator(".compare .frame img[alt*='scene.png']").wait_for()


def run_both(page: Page) -> None:
    page.get_by_role("button", name="Run both").click()


def test_two_models_answer_at_the_same_time_word_by_word(page: Page, site: Site) -> None:
    open_tab(page)
    site.service.gate.clear()
    site.service.pause_s = 0.01  # an answer of a few milliseconds shows no tokens/s
    run_both(page)
    for index in (0, 1):
        expect(answer(page, index)).to_have_text("a")  # both before either goes on
    site.service.gate.set()
    for index in (0, 1):
        expect(answer(page, index)).to_have_text(CAPTION)
        for name in ("First token", "Tokens/s", "74 in, 10 out", "Total"):
            expect(side(page, index).locator(".figures")).to_contain_text(name)
    assert {request.model for request in site.service.requests} == {"moondream", "smolvlm"}
    verdict = page.locator(".verdict")
    expect(verdict).to_contain_text("The answers are the same.")
    assert "times as fast" in verdict.inner_text() or "Both took about" in verdict.inner_text()


def test_a_picture_chosen_in_one_tab_is_there_in_the_other(page: Page, site: Site) -> None:
    page.get_by_role("button", name="Cat").click()
    wait_for_picture(page, "cat.jpg")
    page.get_by_role("tab", name="Compare").click()
    page.locator(".compare .frame img[alt*='cat.jpg']").wait_for()
    drop(page, "mine.png", b"\x89PNG\r\n\x1a\n")  # damaged: the picture stays
    expect(page.get_by_role("alert")).to_contain_text("mine.png can’t be read")
    page.get_by_role("button", name="Coffee").click()
    page.locator(".compare .frame img[alt*='coffee.jpg']").wait_for()
    choose_task(page, "Ask")
    expect(page.get_by_label("Question")).to_have_value("What is in the cup?")
    page.get_by_role("tab", name="Try").click()
    wait_for_picture(page, "coffee.jpg")


def test_pictures_are_shrunk_alike_in_both_tabs(page: Page, site: Site) -> None:
    page.get_by_role("button", name="Cat").click()
    wait_for_picture(page, "cat.jpg")
    page.locator(".try").get_by_label("Shrink before upload").select_option("512")
    page.get_by_role("tab", name="Compare").click()
    compare = page.locator(".compare")
    shrink = compare.get_by_label("Shrink before upload")
    expect(shrink).to_have_value("512")
    drop(page, "large.png", draw(900, 600))
    expect(compare.locator(".about")).to_contain_text("512 × 341")
    page.get_by_role("tab", name="Try").click()
    expect(page.locator(".try .about")).to_contain_text("512 × 341")
    page.locator(".try").get_by_label("Shrink before upload").select_option("Off")
    expect(page.locator(".try .about")).to_contain_text("900 × 600")
    expect(shrink).to_have_value("")


def test_boxes_lie_over_the_picture_of_each_side(page: Page) -> None:
    open_tab(page)
    choose_task(page, "Detect")
    run_both(page)
    red = find_red()
    for index in (0, 1):
        card = side(page, index)
        mark = card.get_by_role("button", name="circle #1:")
        mark.wait_for()
        box, frame = mark.bounding_box(), card.locator(".frame").bounding_box()
        assert box is not None
        assert frame is not None
        left = (box["x"] - frame["x"]) / frame["width"]
        top = (box["y"] - frame["y"]) / frame["height"]
        assert (left, top) == pytest.approx((red.x_min, red.y_min), abs=MARGIN)
        mark.hover()
        expect(mark.locator(".label")).to_be_visible()
    expect(page.locator(".verdict")).to_contain_text("A found 2, B found 2.")


def test_one_model_compares_two_recipes(page: Page, site: Site) -> None:
    open_tab(page)
    choose_task(page, "Detect")  # only one model can do it
    expect(page.get_by_label("What differs")).to_have_value("recipe")
    expect(side(page, 0).get_by_label("Recipe")).to_have_value("")
    expect(side(page, 1).get_by_label("Recipe")).to_have_value("mine")
    side(page, 0).get_by_label("Recipe").select_option("plain")
    run_both(page)
    expect(side(page, 1).locator(".mark")).to_have_count(2)
    plain, mine = sorted(site.service.requests, key=lambda request: request.recipe.smart_crop)
    assert plain.task == mine.task == Detect("circle", 50)
    assert not plain.recipe.smart_crop
    assert mine.recipe.smart_crop


def test_any_setting_may_differ_and_the_others_are_shared(page: Page, site: Site) -> None:
    open_tab(page)
    page.get_by_label("What differs").select_option("Temperature")
    page.locator("#compare-model").select_option("smolvlm")
    page.locator(".compare").get_by_text("More settings").click()
    page.locator("#compare-field-caption_length").select_option("short")
    side(page, 1).get_by_label("Temperature, value").fill("0.9")
    side(page, 1).get_by_label("Temperature, value").blur()
    run_both(page)
    expect(answer(page, 0)).to_have_text(CAPTION)
    expect(answer(page, 1)).to_have_text(CAPTION)
    requests = site.service.requests
    assert [request.task for request in requests] == [Caption(Length.SHORT)] * 2
    assert [request.model for request in requests] == ["smolvlm"] * 2
    temperatures = sorted(request.sampling.temperature for request in requests)
    assert temperatures == pytest.approx([0.0, 0.9])
    page.get_by_label("What differs").select_option("Several settings")
    expect(side(page, 0).get_by_label("Model")).to_be_visible()
    expect(side(page, 0).get_by_label("Recipe")).to_be_visible()


def test_answers_of_earlier_settings_say_so(page: Page) -> None:
    open_tab(page)
    run_both(page)
    old = page.get_by_text("The settings have changed since this answer.")
    expect(answer(page, 1)).to_have_text(CAPTION)
    expect(old).to_have_count(0)
    side(page, 1).get_by_label("Model").select_option("moondream")
    expect(side(page, 1).get_by_text("The settings have changed since")).to_be_visible()
    expect(old).to_have_count(1)
    choose_task(page, "Ask")
    expect(old).to_have_count(2)
    run_both(page)
    expect(answer(page, 1)).to_have_text(CAPTION)
    expect(old).to_have_count(0)


def test_words_that_only_one_side_has_are_marked(page: Page) -> None:
    texts = {"moondream": "a red circle and a square", "smolvlm": "a red disc and a square"}

    def fulfill(route: Any) -> None:
        model = route.request.post_data_json["model"]
        events = [{"chunk": texts[model]}, {"completed": True}]
        body = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
        route.fulfill(body=body, headers={"X-Raylens-Model": model})

    page.route("**/v1/caption", fulfill)
    open_tab(page)
    run_both(page)
    expect(page.locator(".verdict")).to_contain_text("The answers differ.")
    expect(answer(page, 0)).to_have_text(texts["moondream"])
    expect(answer(page, 0).locator("mark")).to_have_text(["circle "])
    expect(answer(page, 1).locator("mark")).to_have_text(["disc "])


def test_stop_ends_both(page: Page, site: Site) -> None:
    open_tab(page)
    site.service.gate.clear()
    run_both(page)
    for index in (0, 1):
        expect(answer(page, index)).to_have_text("a")
    page.get_by_role("button", name="Stop both").click()
    for index in (0, 1):
        expect(side(page, index).get_by_text("Stopped.")).to_be_visible()
    expect(page.get_by_role("button", name="Run both")).to_be_visible()


def test_an_error_of_one_side_leaves_the_other_alone(page: Page, site: Site) -> None:
    is_down = True

    def answer_or_fail(route: Any) -> None:
        if is_down and route.request.post_data_json["model"] == "smolvlm":
            route.fulfill(status=503, headers={"Retry-After": "3"}, json={"detail": "it is full"})
        else:
            route.continue_()

    page.route("**/v1/caption", answer_or_fail)
    open_tab(page)
    run_both(page)
    expect(answer(page, 0)).to_have_text(CAPTION)
    expect(side(page, 1).get_by_role("alert")).to_contain_text("Try again in 3 seconds.")
    expect(page.locator(".verdict")).to_contain_text("Two answers to the same task are needed")
    is_down = False
    side(page, 1).get_by_role("button", name="Try again").click()
    expect(answer(page, 1)).to_have_text(CAPTION)
    assert len(site.service.requests) == 2


def test_what_is_missing_is_said(page: Page, site: Site) -> None:
    page.get_by_role("tab", name="Compare").click()
    run_both(page)
    expect(page.get_by_role("alert")).to_contain_text("Choose a picture first.")
    assert not site.service.requests
    site.service.error = ModelFailed("out of memory")
    page.get_by_role("button", name="Shapes").click()
    page.locator(".compare .frame img").wait_for()
    run_both(page)
    expect(page.get_by_role("alert")).to_have_count(2)


def test_both_are_copied_as_json_and_each_has_its_own(page: Page) -> None:
    open_tab(page)
    run_both(page)
    expect(page.locator(".verdict")).to_contain_text("The answers are the same.")
    page.get_by_role("button", name="Copy both as JSON").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    both = json.loads(page.evaluate("navigator.clipboard.readText()"))
    assert [both[name]["model"] for name in "ab"] == ["moondream", "smolvlm"]
    for record in both.values():
        assert record["request"]["path"] == "/v1/caption"
        assert record["total_ms"] >= record["first_token_ms"] > 0
        assert "".join(event.get("chunk", "") for event in record["answer"]).strip() == CAPTION
    side(page, 1).get_by_role("tab", name="JSON").click()
    expect(side(page, 1).locator("pre").first).to_contain_text('"smolvlm"')
    expect(side(page, 0).locator("pre")).to_have_count(0)


def test_a_comparison_works_by_keyboard_and_survives_other_tabs(page: Page) -> None:
    page.get_by_role("tab", name="Try").focus()
    page.keyboard.press("ArrowRight")
    page.get_by_label("What differs").wait_for()
    page.get_by_role("button", name="Shapes").focus()
    page.keyboard.press("Enter")
    page.locator(".compare .frame img").wait_for()
    page.keyboard.press("Control+Enter")
    expect(answer(page, 1)).to_have_text(CAPTION)
    page.get_by_role("tab", name="Status").click()
    page.get_by_role("tab", name="Compare").click()
    expect(answer(page, 0)).to_have_text(CAPTION)


def test_a_missing_key_is_asked_for(browser: Browser) -> None:
    auth = {"keys": [{"name": "me", "hash": hash_key("rl-mine")}]}
    with serving(auth=auth) as site:
        for page in opened(browser, site.url):
            page.get_by_role("tab", name="Compare").click()
            page.get_by_role("button", name="Enter key").click()
            page.get_by_label("API key").fill("rl-mine")
            page.get_by_label("API key").press("Enter")
            expect(page.get_by_role("alert")).to_have_count(0)
            open_tab(page)
            run_both(page)
            expect(answer(page, 1)).to_have_text(CAPTION)


def test_a_server_with_one_model_compares_recipes_at_once(browser: Browser) -> None:
    with serving(models=CONFIG["models"][:1]) as site:
        for page in opened(browser, site.url):
            page.get_by_role("tab", name="Compare").click()
            expect(page.get_by_label("What differs")).to_have_value("recipe")
            open_tab(page)
            run_both(page)
            expect(answer(page, 1)).to_have_text(CAPTION)


def test_the_sides_are_beside_each_other_and_on_a_phone_below(page: Page) -> None:
    open_tab(page)
    boxes = [side(page, index).bounding_box() for index in (0, 1)]
    assert boxes[0]["y"] == boxes[1]["y"]  # type: ignore[index]
    page.set_viewport_size({"width": 390, "height": 844})
    boxes = [side(page, index).bounding_box() for index in (0, 1)]
    assert boxes[1]["y"] > boxes[0]["y"] + boxes[0]["height"]  # type: ignore[index]
