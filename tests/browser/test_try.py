"""The tab "Try", used as a person does."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from raylens.core.errors import DeadlineExceeded, ModelFailed, Overloaded, PayloadTooLarge
from raylens.core.keys import hash_key
from raylens.core.types import Caption, Detect, Length, Query
from tests.browser.conftest import opened
from tests.browser.live_page import wait_until
from tests.browser.site import CAPTION, MAX_BYTES, SCENE, Site, center, find_red, serving

pytestmark = pytest.mark.browser

MARGIN_PX = 4


def give(page: Page, name: str, content: bytes, media_type: str = "image/png") -> None:
    """Choose a file."""
    file = {"name": name, "mimeType": media_type, "buffer": content}
    page.locator("input[type=file]").set_input_files(file)  # type: ignore[arg-type]


def drop(page: Page, name: str, content: bytes) -> None:
    """Drop a file onto the page."""
    send(page, "drop", name, content, "dataTransfer")


def send(page: Page, event: str, name: str, content: bytes, field: str) -> None:
    script = """([event, name, data, field]) => {
      const bytes = Uint8Array.from(atob(data), (char) => char.charCodeAt(0))
      const transfer = new DataTransfer()
      transfer.items.add(new File([bytes], name, { type: 'image/png' }))
      const type = event === 'paste' ? ClipboardEvent : DragEvent
      document.querySelector('.stage').dispatchEvent(
        new type(event, { [field]: transfer, bubbles: true, cancelable: true }))
    }"""
    page.evaluate(script, [event, name, base64.b64encode(content).decode(), field])


def wait_for_picture(page: Page, name: str) -> None:
    page.locator(f".frame img[alt*='{name}']:visible").wait_for()


def wait_for_limits(page: Page) -> None:
    """Return once the page knows the server's limits, which come with its settings."""
    page.get_by_text("More settings").first.wait_for()


def choose_task(page: Page, task: str) -> None:
    page.get_by_role("radio", name=task).check()


def run(page: Page) -> None:
    page.get_by_role("button", name="Run").click()


def draw(width: int, height: int, **options: Any) -> bytes:
    output = io.BytesIO()
    Image.new("RGB", (width, height), (40, 90, 160)).save(output, **{"format": "PNG", **options})
    return output.getvalue()


def size_of(picture: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(picture)).size


def test_a_dropped_scene_gets_a_caption_that_appears_word_by_word(page: Page, site: Site) -> None:
    site.service.gate.clear()
    site.service.pause_s = 0.01  # else it is too fast for a rate
    drop(page, "scene.png", SCENE.read_bytes())
    wait_for_picture(page, "scene.png")
    run(page)
    answer = page.get_by_test_id("answer")
    expect(answer).to_have_text("a")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    site.service.gate.set()
    expect(answer).to_have_text(CAPTION)
    expect(page.locator(".figures")).to_contain_text("74 in, 10 out")
    for name in ("First token", "Tokens/s", "Total"):
        expect(page.locator(".figures")).to_contain_text(name)
    assert site.service.pictures == [SCENE.read_bytes()]
    assert site.service.requests[0].task == Caption(Length.NORMAL)


def test_one_click_picks_an_example_and_another_one_asks_about_it(page: Page, site: Site) -> None:
    page.get_by_role("button", name="Cat").click()
    wait_for_picture(page, "cat.jpg")
    choose_task(page, "Ask")
    run(page)
    expect(page.get_by_test_id("answer")).to_have_text(CAPTION)
    assert site.service.requests[0].task == Query("What animal is this?")


def test_a_box_lies_over_the_shape_and_hover_and_focus_name_it(page: Page, site: Site) -> None:
    page.get_by_role("button", name="Shapes").click()
    wait_for_picture(page, "scene.png")
    choose_task(page, "Detect")
    run(page)
    expect(page.get_by_test_id("answer")).to_have_text("2 matches for “circle”.")
    mark = page.get_by_role("button", name="circle #1:")
    box = mark.bounding_box()
    assert box is not None
    shown = page.screenshot()
    page.evaluate("document.querySelectorAll('.mark').forEach((mark) => mark.remove())")
    pixels = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB")).astype(int)
    frame = page.locator(".frame").bounding_box()
    assert frame is not None
    red = (pixels[..., 0] > 150) & (pixels[..., 1] < 90) & (pixels[..., 2] < 90)
    red[int(frame["y"] + frame["height"]) :] = False  # the examples have it too
    rows, columns = np.nonzero(red)
    bounds = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    drawn = [box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"]]
    assert drawn == pytest.approx(bounds, abs=MARGIN_PX)
    before = np.asarray(Image.open(io.BytesIO(shown)).convert("RGB")).astype(int)
    edge = before[round(box["y"]) + 1, round(box["x"] + box["width"] / 2)]
    assert np.abs(edge - (255, 61, 113)).max() < 40


def test_hover_and_focus_name_what_was_found(page: Page, site: Site) -> None:
    page.get_by_role("button", name="Shapes").click()
    wait_for_picture(page, "scene.png")
    choose_task(page, "Detect")
    run(page)
    first, second = (page.get_by_role("button", name=f"circle #{number}:") for number in (1, 2))
    label = first.locator(".label")
    expect(label).to_be_hidden()
    first.hover()
    expect(label).to_be_visible()
    expect(label).to_have_text("circle #1")
    page.mouse.move(0, 0)
    expect(label).to_be_hidden()
    second.focus()
    page.keyboard.press("Tab")
    expect(first).to_be_focused()
    expect(label).to_be_visible()
    page.locator(".findings li").nth(1).hover()
    expect(second.locator(".label")).to_be_visible()


def test_a_point_is_the_center_of_the_shape(page: Page) -> None:
    page.get_by_role("button", name="Shapes").click()
    wait_for_picture(page, "scene.png")
    choose_task(page, "Point")
    run(page)
    mark = page.locator(".mark.point").bounding_box()
    frame = page.locator(".frame").bounding_box()
    assert mark is not None
    assert frame is not None
    red = find_red()
    x = (mark["x"] + mark["width"] / 2 - frame["x"]) / frame["width"]
    y = (mark["y"] + mark["height"] / 2 - frame["y"]) / frame["height"]
    assert (x, y) == pytest.approx(
        ((red.x_min + red.x_max) / 2, (red.y_min + red.y_max) / 2), abs=0.01
    )


def test_settings_are_those_of_the_schema_and_reach_the_model(page: Page, site: Site) -> None:
    page.get_by_role("button", name="Shapes").click()
    page.get_by_text("More settings").click()
    page.get_by_label("Caption length").select_option("long")
    page.get_by_label("Temperature", exact=True).fill("0.7")
    page.get_by_label("Recipe").select_option("mine")
    page.get_by_label("Max tokens, value").fill("12")
    page.get_by_label("Max tokens, value").blur()
    page.locator("#model").select_option("smolvlm")
    expect(page.locator(".badge")).to_have_text("4 changed")
    run(page)
    expect(page.get_by_test_id("answer")).to_have_text(CAPTION)
    (request,) = site.service.requests
    assert request.task == Caption(Length.LONG)
    assert request.sampling.temperature == pytest.approx(0.7)
    assert request.sampling.max_tokens == 12
    assert request.model == "smolvlm"
    assert request.recipe.smart_crop


def test_the_result_stays_in_sight_beside_open_settings(page: Page) -> None:
    page.set_viewport_size({"width": 1440, "height": 900})
    page.get_by_role("button", name="Shapes").click()
    wait_for_picture(page, "scene.png")
    page.get_by_text("More settings").click()
    run(page)
    expect(page.get_by_test_id("answer")).to_have_text(CAPTION)
    page.evaluate("scrollTo(0, 0)")
    expect(page.get_by_test_id("answer")).to_be_in_viewport(ratio=1)


def test_a_phone_shows_the_whole_result_once_it_is_complete(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.get_by_role("button", name="Shapes").click()
    wait_for_picture(page, "scene.png")
    run(page)
    expect(page.locator("#result dd", has_text="in,")).to_be_in_viewport(ratio=1)


def test_settings_that_are_not_changed_are_the_servers(page: Page, site: Site) -> None:
    page.get_by_role("button", name="Shapes").click()
    choose_task(page, "Detect")
    run(page)
    page.get_by_role("tab", name="JSON").click()
    shown = json.loads(page.locator("pre").first.inner_text())
    assert shown.keys() == {"image_url", "object"}
    assert site.service.requests[0].task == Detect("circle", 50)


def test_a_new_field_of_the_schema_needs_no_change_of_the_page(
    browser: Browser, site: Site
) -> None:
    hints = {"order": 0, "category": "configuration", "label": "Effort"}
    fields = {
        "effort": {
            "type": "number",
            "minimum": 0,
            "maximum": 2,
            "default": 1,
            "description": "How hard.",
            "ui": {**hints, "request": "settings.effort"},
        },
        "style": {
            "$ref": "#/$defs/Style",
            "default": "plain",
            "ui": {**hints, "label": "Style", "request": "style"},
        },
        "polite": {
            "anyOf": [{"type": "boolean"}, {"type": "null"}],
            "default": None,
            "ui": {**hints, "label": "Polite", "request": "polite"},
        },
        "elsewhere": {
            "type": "string",
            "ui": {**hints, "label": "Elsewhere", "request": "x", "features": ["point"]},
        },
        "live": {"type": "string", "ui": {**hints, "label": "Live only"}},
    }

    def add_fields(route: Any) -> None:
        response = route.fetch()
        answer = response.json()
        schema = answer["pipelines"]["moondream"]["config_schema"]
        schema["properties"].update(fields)
        schema["$defs"]["Style"] = {"enum": ["plain", "ornate"], "type": "string"}
        route.fulfill(response=response, json=answer)

    context = browser.new_context()
    page = context.new_page()
    page.route("**/pipelines/schemas", add_fields)
    page.goto(site.url)
    page.get_by_role("button", name="Shapes").click()
    page.get_by_text("More settings").click()
    page.get_by_label("Effort", exact=True).fill("2")
    expect(page.get_by_text("How hard.")).to_be_visible()
    page.get_by_label("Style").select_option("ornate")
    page.get_by_role("switch", name="Polite").check()
    expect(page.get_by_label("Elsewhere")).to_have_count(0)
    expect(page.get_by_label("Live only")).to_have_count(0)
    with page.expect_request("**/v1/caption") as caught:
        run(page)
    body = caught.value.post_data_json or {}
    assert (body["settings"], body["style"], body["polite"]) == ({"effort": 2}, "ornate", True)
    context.close()


def test_only_models_that_can_do_a_task_are_offered(page: Page) -> None:
    expect(page.locator("#model option")).to_have_text(["Server’s choice", "moondream", "smolvlm"])
    choose_task(page, "Detect")
    expect(page.locator("#model option")).to_have_text(["Server’s choice", "moondream"])
    choose_task(page, "Ask")
    expect(page.get_by_label("Reasoning")).to_be_visible()
    page.locator("#model").select_option("smolvlm")
    expect(page.get_by_label("Reasoning")).to_have_count(0)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("notes.txt", b"hello", "notes.txt is not a picture. Choose a JPEG"),
        ("page.png", b"<svg></svg>", "page.png is not a picture."),
        ("none.png", b"", "none.png is empty. Choose another file."),
        ("cut.png", SCENE.read_bytes()[:500], "cut.png can’t be read: the file seems"),
        ("wide.png", draw(2100, 8), "wide.png has a side of 2100 pixels; this server takes"),
        ("flat.png", draw(100, 3), "flat.png has a side of 3 pixels; this server needs"),
    ],
)
def test_a_wrong_file_gets_a_sentence_and_is_not_sent(
    page: Page, site: Site, name: str, content: bytes, sentence: str
) -> None:
    wait_for_limits(page)
    give(page, name, content)
    expect(page.get_by_role("alert")).to_contain_text(sentence)
    assert not site.service.pictures
    page.get_by_role("button", name="Dismiss").click()
    expect(page.get_by_role("alert")).to_have_count(0)


def test_a_file_that_is_too_large_can_be_shrunk(page: Page, site: Site) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (600, 1200, 3), dtype=np.uint8)
    output = io.BytesIO()
    Image.fromarray(noise).save(output, "JPEG", quality=95)
    assert output.tell() > MAX_BYTES
    wait_for_limits(page)
    give(page, "noise.jpg", output.getvalue(), "image/jpeg")
    expect(page.get_by_role("alert")).to_contain_text(
        "takes pictures up to 400 kB. Turn on “Shrink"
    )
    page.get_by_label("Shrink before upload").select_option("512")
    wait_for_picture(page, "noise.jpg")
    expect(page.get_by_role("alert")).to_have_count(0)
    run(page)
    expect(page.get_by_test_id("answer")).to_have_text(CAPTION)
    assert size_of(site.service.pictures[0]) == (512, 256)


def test_a_turned_photograph_is_upright_in_every_place(page: Page, site: Site) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it by 90 degrees to see it
    turned = draw(600, 400, format="JPEG", exif=exif)
    give(page, "turned.jpg", turned, "image/jpeg")
    wait_for_picture(page, "turned.jpg")
    expect(page.locator(".about")).to_contain_text("400 × 600")
    frame = page.locator(".frame").bounding_box()
    assert frame is not None
    assert frame["height"] / frame["width"] == pytest.approx(1.5, abs=0.02)
    run(page)
    expect(page.get_by_test_id("answer")).to_have_text(CAPTION)
    assert site.service.pictures == [turned]  # the server turns it
    page.get_by_label("Shrink before upload").select_option("512")
    expect(page.locator(".about")).to_contain_text("341 × 512")
    page.get_by_label("Shrink before upload").select_option("Off")
    expect(page.locator(".about")).to_contain_text("400 × 600")


def test_a_format_that_only_the_server_reads_is_shown_all_the_same(page: Page, site: Site) -> None:
    picture = draw(600, 150, format="TIFF")
    give(page, "scan.tif", picture, "image/tiff")
    wait_for_picture(page, "scan.tif")
    expect(page.locator(".about")).to_contain_text("600 × 150, 270.1 kB")
    run(page)
    expect(page.get_by_test_id("answer")).to_have_text(CAPTION)
    assert site.service.pictures == [picture]
    page.get_by_label("Shrink before upload").select_option("512")
    wait_for_picture(page, "scan.jpg")
    expect(page.locator(".about")).to_contain_text("512 × 128")
    give(page, "large.tif", draw(600, 300, format="TIFF"), "image/tiff")
    expect(page.get_by_role("alert")).to_contain_text("large.tif is 540.")
    expect(page.get_by_role("alert")).to_contain_text("Save a smaller copy, as a JPEG or PNG")
    site.service.error = PayloadTooLarge("image_url: 2100×20 pixels; too many", "image_url")
    give(page, "wide.tif", draw(2100, 20, format="TIFF"), "image/tiff")
    expect(page.get_by_role("alert")).to_contain_text(
        "The server can’t read wide.tif (2100×20 pixels; too many). Save a copy"
    )


def test_a_thumbnail_has_fixed_sides_and_the_stage_is_wide(page: Page) -> None:
    give(page, "tall.png", draw(100, 900))
    wait_for_picture(page, "tall.png")
    stage = page.locator(".stage").bounding_box()
    assert stage is not None
    assert stage["width"] / stage["height"] >= 16 / 9 - 0.01
    run(page)
    script = "(image) => image.decode().then(() => [image.naturalWidth, image.naturalHeight])"
    assert page.locator(".past img").evaluate(script) == [120, 90]


def test_pictures_come_from_the_clipboard_and_the_camera(page: Page, site: Site) -> None:
    send(page, "paste", "image.png", draw(64, 48), "clipboardData")
    expect(page.locator(".about")).to_contain_text("64 × 48")
    page.get_by_role("button", name="Camera").click()
    page.get_by_role("button", name="Take picture").click()
    wait_for_picture(page, "camera.jpg")
    run(page)
    expect(page.get_by_test_id("answer")).to_have_text(CAPTION)
    assert min(size_of(site.service.pictures[0])) >= 240


def test_the_server_downloads_a_picture_from_an_address(browser: Browser) -> None:
    with serving(fetch={"allow": ["127.0.0.1"]}) as site:
        for page in opened(browser, site.url):
            page.get_by_role("button", name="From URL").click()
            address = page.get_by_label("Web address of a picture")
            address.fill("cat.jpg")
            page.get_by_role("button", name="Load").click()
            problem = page.locator(".picture").get_by_role("alert")
            expect(problem).to_contain_text("This is not a web address:")
            expect(address).to_have_attribute("aria-invalid", "true")
            expect(address).to_have_accessible_description(re.compile("^This is not a web address"))
            address.fill(f"{site.url}playground/examples/dog.jpg")
            page.get_by_role("button", name="Load").click()
            expect(problem).to_contain_text(
                "The server can’t load this picture (127.0.0.1: answered 404 Not Found). Check"
            )
            expect(page.get_by_role("alert")).to_have_count(1)
            address.fill(f"{site.url}playground/examples/cat.jpg")
            page.get_by_role("button", name="Load").click()
            wait_for_picture(page, "cat.jpg")
            expect(problem).to_have_count(0)
            expect(address).not_to_have_attribute("aria-invalid", "true")
            run(page)
            expect(page.get_by_test_id("answer")).to_have_text(CAPTION)
            page.get_by_role("tab", name="JSON").click()
            expect(page.locator("pre").first).to_contain_text(
                f"{site.url}playground/examples/cat.jpg"
            )
        example = SCENE.parents[1] / "raylens" / "playground" / "examples" / "cat.jpg"
        assert site.service.pictures == [example.read_bytes()]


def test_stop_ends_the_work_and_keeps_what_has_come(page: Page, site: Site) -> None:
    site.service.gate.clear()
    page.get_by_role("button", name="Shapes").click()
    wait_for_picture(page, "scene.png")
    run(page)
    expect(page.get_by_test_id("answer")).to_have_text("a")
    site.service.ended.clear()
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("Stopped.")).to_be_visible()
    expect(page.get_by_test_id("answer")).to_have_text("a")
    assert site.service.ended.wait(5)
    expect(page.get_by_role("button", name="Run")).to_be_visible()


@pytest.mark.parametrize(("used", "other"), [("Try", "Compare"), ("Compare", "Try")])
def test_another_picture_stops_the_run_about_the_one_before(
    page: Page, site: Site, used: str, other: str
) -> None:
    page.get_by_role("tab", name=used).click()
    page.get_by_role("button", name="Shapes").click()
    wait_for_picture(page, "scene.png")
    site.service.gate.clear()
    page.get_by_role("button", name=re.compile("^Run")).click()
    expect(page.get_by_test_id("answer").first).to_have_text("a")
    site.service.ended.clear()
    page.get_by_role("tab", name=other).click()
    page.get_by_role("button", name="Cat").click()
    assert site.service.ended.wait(5)


def test_a_picture_that_is_no_longer_used_leaves_the_browsers_memory(page: Page) -> None:
    page.get_by_role("button", name="Shapes").click()
    wait_for_picture(page, "scene.png")
    view = page.locator(".frame img").get_attribute("src")
    for button, name in (("Cat", "cat.jpg"), ("Coffee", "coffee.jpg")):
        page.get_by_role("button", name=button).click()
        wait_for_picture(page, name)
    devtools = page.context.new_cdp_session(page)
    can_show = """(url) => new Promise((resolve) => {
      const image = new Image()
      image.onload = () => resolve(true)
      image.onerror = () => resolve(false)
      image.src = url
    })"""

    def is_gone() -> bool:
        devtools.send("HeapProfiler.collectGarbage")
        return not page.evaluate(can_show, view)

    wait_until(is_gone)
    assert page.evaluate(can_show, page.locator(".frame img").get_attribute("src"))


def test_an_earlier_answer_can_be_shown_again(page: Page) -> None:
    page.get_by_role("button", name="Shapes").click()
    wait_for_picture(page, "scene.png")
    run(page)
    expect(page.get_by_test_id("answer")).to_have_text(CAPTION)
    page.get_by_role("button", name="Coffee").click()
    wait_for_picture(page, "coffee.jpg")
    choose_task(page, "Detect")
    run(page)
    expect(page.get_by_test_id("answer")).to_have_text("2 matches for “spoon”.")
    past = page.locator(".past")
    expect(past).to_have_count(2)
    past.nth(1).click()
    expect(page.get_by_test_id("answer")).to_have_text(CAPTION)
    wait_for_picture(page, "scene.png")
    expect(page.locator(".mark")).to_have_count(0)
    expect(page.get_by_role("radio", name="Caption")).to_be_checked()
    old = page.get_by_text("The settings have changed since this answer.")
    expect(old).to_have_count(0)
    choose_task(page, "Ask")
    expect(old).to_be_visible()
    expect(page.get_by_text("Kept until this page is reloaded")).to_be_visible()
    page.get_by_role("button", name="Clear").click()
    expect(past).to_have_count(0)


def test_a_run_without_an_answer_does_not_become_old(page: Page, site: Site) -> None:
    site.service.error = ModelFailed("out of memory")
    page.get_by_role("button", name="Shapes").click()
    wait_for_picture(page, "scene.png")
    run(page)
    expect(page.get_by_role("alert")).to_contain_text("Out of memory.")
    choose_task(page, "Ask")
    expect(page.get_by_label("Question")).to_be_visible()
    expect(page.get_by_text("The settings have changed")).to_have_count(0)


def test_preprocessing_is_shown_side_by_side_with_its_steps(page: Page, site: Site) -> None:
    site.service.warnings = ("denoise: skipped, it would take too long",)
    page.get_by_role("button", name="Shapes").click()
    page.get_by_text("More settings").click()
    page.get_by_label("Recipe").select_option("enhanced")
    run(page)
    expect(page.locator(".notice")).to_contain_text("Denoise: skipped, it would take too long.")
    page.get_by_role("tab", name="Preprocessing").click()
    pictures = page.locator(".side-by-side img")
    expect(pictures).to_have_count(2)
    assert (
        pictures.nth(1).evaluate("(image) => image.decode().then(() => image.naturalWidth)") == 480
    )
    expect(page.locator(".result table")).to_contain_text("denoise")
    expect(page.locator(".result")).to_contain_text("The model then scales it to 378 × 378 pixels.")
    assert site.service.recipes[0].smart_crop


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ModelFailed("out of memory"), "The server failed on this request. Out of memory."),
        (Overloaded("it is full", retry_after=3), "It is full. Try again in 3 seconds."),
        (DeadlineExceeded("the deadline passed"), "The answer took longer than the server allows."),
    ],
)
def test_an_error_is_a_sentence_and_can_be_tried_again(
    page: Page, site: Site, error: Any, sentence: str
) -> None:
    site.service.error = error
    page.get_by_role("button", name="Shapes").click()
    wait_for_picture(page, "scene.png")
    run(page)
    expect(page.get_by_role("alert")).to_contain_text(sentence)
    site.service.error = None
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_test_id("answer")).to_have_text(CAPTION)
    expect(page.get_by_role("alert")).to_have_count(0)


def test_an_error_in_the_middle_of_an_answer_keeps_its_beginning(page: Page, site: Site) -> None:
    site.service.error = ModelFailed("out of memory")
    site.service.words_before_error = 3
    page.get_by_role("button", name="Shapes").click()
    wait_for_picture(page, "scene.png")
    run(page)
    expect(page.get_by_role("alert")).to_contain_text("The server failed on this request.")
    expect(page.get_by_test_id("answer")).to_have_text("a red circle,")


def test_an_answer_that_breaks_off_is_not_taken_for_a_complete_one(page: Page) -> None:
    events = 'data: {"chunk":"half an"}\n\n'
    page.route("**/v1/caption", lambda route: route.fulfill(body=events))
    page.get_by_role("button", name="Shapes").click()
    wait_for_picture(page, "scene.png")
    run(page)
    expect(page.get_by_role("alert")).to_contain_text(
        "The connection ended before the answer was complete."
    )
    expect(page.get_by_test_id("answer")).to_have_text("half an")


def test_thoughts_are_shown_beside_the_answer(page: Page) -> None:
    page.get_by_role("button", name="Shapes").click()
    choose_task(page, "Ask")
    page.get_by_label("Reasoning").check()
    run(page)
    thoughts = page.locator(".reasoning")
    expect(thoughts).to_contain_text("🔎 The circle is red.")
    expect(page.get_by_test_id("answer")).to_have_text(CAPTION)
    expect(thoughts.locator("mark")).to_have_text("circle")
    point = page.get_by_role("button", name="circle: ")
    expect(point).to_have_class("mark point")
    thoughts.locator("mark").hover()
    expect(point).to_have_class("mark point active")
    box, frame = point.bounding_box(), page.locator(".frame").bounding_box()
    assert box is not None
    assert frame is not None
    drawn = (
        (box["x"] + box["width"] / 2 - frame["x"]) / frame["width"],
        (box["y"] + box["height"] / 2 - frame["y"]) / frame["height"],
    )
    red = center(find_red())
    assert drawn == pytest.approx((red.x, red.y), abs=0.01)


def test_run_without_a_picture_or_a_question_says_what_is_missing(page: Page, site: Site) -> None:
    run(page)
    expect(page.get_by_role("alert")).to_contain_text("Choose a picture first.")
    give(page, "mine.png", draw(64, 48))
    wait_for_picture(page, "mine.png")
    choose_task(page, "Ask")
    run(page)
    expect(page.get_by_role("alert")).to_contain_text("Fill in “Question” first.")
    assert not site.service.requests


def test_a_server_that_restarts_is_waited_for(browser: Browser) -> None:
    with serving() as site:
        pages = opened(browser, site.url)
        page = next(pages)
        page.get_by_role("button", name="Shapes").click()
        wait_for_picture(page, "scene.png")
    run(page)
    expect(page.locator(".result")).to_contain_text("The server does not answer. Trying again…")
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.locator(".result")).to_contain_text("Stopped.")
    run(page)
    expect(page.locator(".result")).to_contain_text("The server does not answer. Trying again…")
    with serving(port=site.port):
        expect(page.get_by_test_id("answer")).to_have_text(CAPTION, timeout=15_000)
        next(pages, None)


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (1440, 850), (1440, 900)])
def test_no_setting_is_cut_off_on_a_laptop(page: Page, width: int, height: int) -> None:
    page.set_viewport_size({"width": width, "height": height})
    page.get_by_text("More settings").click()
    page.get_by_label("Max tokens, value").fill("100")
    page.get_by_label("Max tokens, value").blur()
    expect(page.get_by_role("button", name="Reset")).to_be_visible()
    settings = page.locator(".try .more")
    assert settings.evaluate("(more) => more.scrollHeight - more.clientHeight") == 0
    for field in settings.locator(".field").all():
        expect(field).to_be_in_viewport(ratio=1)


@pytest.mark.parametrize("path", ["api/v1/playground", "api/v1/pipelines/schemas"])
def test_settings_that_an_overloaded_server_refuses_are_asked_for_again(
    page: Page, path: str
) -> None:
    page.route(f"**/{path}", lambda route: route.fulfill(status=503), times=1)
    with page.expect_response(lambda response: response.status == 503):
        page.reload()
    page.get_by_role("button", name="Shapes").click()
    wait_for_picture(page, "scene.png")
    expect(page.locator("#model option")).not_to_have_count(0)
    page.get_by_text("More settings").click()
    expect(page.get_by_label("Temperature", exact=True)).to_be_visible()
    run(page)
    expect(page.get_by_test_id("answer")).to_have_text(CAPTION)


def test_a_server_that_hangs_counts_as_away_until_it_answers(page: Page) -> None:
    page.clock.install()
    state = page.get_by_role("banner").get_by_role("status")
    page.route("**/health", lambda route: None, times=1)
    with page.expect_request("**/health"):
        page.reload()
    expect(state).to_have_text("Connecting…")
    page.clock.fast_forward(20_000)
    expect(state).to_have_text("Server unreachable")
    page.clock.fast_forward(10_000)
    expect(state).to_have_text("Ready")


def test_a_missing_key_is_asked_for_and_kept_in_the_tab_only(browser: Browser) -> None:
    auth = {"keys": [{"name": "me", "hash": hash_key("rl-mine")}]}
    with serving(auth=auth) as site:
        for page in opened(browser, site.url):
            alert = page.get_by_role("alert")
            expect(alert).to_contain_text("This server needs an API key.")
            page.get_by_role("button", name="Shapes").click()
            wait_for_picture(page, "scene.png")
            run(page)
            expect(alert).to_contain_text("This server needs an API key.")  # once
            page.get_by_role("button", name="Enter key").click()
            field = page.get_by_label("API key")
            expect(field).to_be_focused()
            field.fill("wrong")
            field.press("Enter")
            expect(alert).to_contain_text("The server does not know this API key.")
            page.get_by_text("Key set").click()
            field.fill("rl-mine")
            field.press("Enter")
            expect(alert).to_have_count(0)
            page.get_by_role("button", name="Shapes").click()
            wait_for_picture(page, "scene.png")
            run(page)
            expect(page.get_by_test_id("answer")).to_have_text(CAPTION)
            assert page.evaluate("Object.values(sessionStorage)") == ["rl-mine"]
            assert page.evaluate("Object.values(localStorage)") == []
            page.get_by_role("tab", name="Code").click()
            expect(page.locator("pre")).to_contain_text("$RAYLENS_API_KEY")
            expect(page.locator("pre")).not_to_contain_text("rl-mine")


def test_a_key_that_no_request_can_carry_is_not_taken(page: Page) -> None:
    page.get_by_text("Key", exact=True).click()
    field = page.get_by_label("API key")
    field.fill("rl-schlüssel")
    field.press("Enter")
    assert field.evaluate("(input) => input.validity.patternMismatch")
    assert page.evaluate("sessionStorage.length") == 0
    field.fill(" rl-mine ")
    field.press("Enter")
    assert page.evaluate("Object.values(sessionStorage)") == ["rl-mine"]


def test_a_browser_that_keeps_nothing_shows_the_page_all_the_same(page: Page, site: Site) -> None:
    page.add_init_script("""for (const name of ['localStorage', 'sessionStorage'])
      Object.defineProperty(window, name, { get() { throw new DOMException('', 'SecurityError') } })
    """)
    page.reload()
    page.get_by_label("Theme").select_option("dark")
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    page.get_by_text("Key", exact=True).click()
    page.get_by_label("API key").fill("rl-mine")
    with page.expect_request("**/api/v1/playground") as caught:
        page.get_by_label("API key").press("Enter")
    assert caught.value.headers["authorization"] == "Bearer rl-mine"


def test_the_page_works_below_a_prefix(browser: Browser) -> None:
    with serving("/vision") as site:
        for page in opened(browser, site.url):
            page.get_by_role("button", name="Shapes").click()
            wait_for_picture(page, "scene.png")
            run(page)
            expect(page.get_by_test_id("answer")).to_have_text(CAPTION)


def test_everything_is_reached_by_keyboard(page: Page) -> None:
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the content")).to_be_focused()
    page.get_by_role("tab", name="Try").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("tab", name="Status")).to_be_focused()
    expect(page.get_by_role("heading", name="Server", exact=True)).to_be_visible()
    assert page.url.endswith("#status")
    page.keyboard.press("Home")
    page.get_by_role("button", name="Shapes").focus()
    page.keyboard.press("Enter")
    wait_for_picture(page, "scene.png")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_test_id("answer")).to_have_text(CAPTION)
    page.go_back()
    expect(page.get_by_role("heading", name="Server", exact=True)).to_be_visible()


def test_a_theme_is_kept(page: Page) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    page.emulate_media(color_scheme="light")
    light = page.evaluate(background)
    page.get_by_label("Theme").select_option("dark")
    dark = page.evaluate(background)
    assert dark != light
    page.reload()
    assert page.evaluate(background) == dark
    page.get_by_label("Theme").select_option("auto")
    assert page.evaluate(background) == light


def test_the_pocket_models_limits_are_told(page: Page) -> None:
    page.get_by_role("button", name="Shapes").click()
    wait_for_picture(page, "scene.png")
    note = page.get_by_text("This is a pocket model")
    expect(note).to_have_count(0)
    page.get_by_role("button", name="Cat").click()
    expect(note).to_be_visible()
    page.locator("#model").select_option("smolvlm")
    expect(note).to_have_count(0)


def test_examples_are_the_documented_ones() -> None:
    folder = Path(SCENE.parents[1], "raylens", "playground", "examples")
    assert (folder / "scene.png").read_bytes() == SCENE.read_bytes()
