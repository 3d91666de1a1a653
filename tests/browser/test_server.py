"""The page on a real server: Serve's proxy, preprocessing, and the bundled models."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from testing.scenes import draw_scene
from testing.server import running_server
from tests.browser.conftest import opened
from tests.browser.jobs_page import drop, submit
from tests.browser.live_page import SOCKET, WEBRTC, answer, bounds, open_tab, saved, start, stop
from tests.browser.site import CAPTION, ROOT, find_red
from tests.browser.test_chat import CLIP, answers, attach, attached, open_chat, say
from tests.browser.test_compare import run_both, side
from tests.browser.test_try import choose_task, run, wait_for_picture

pytestmark = pytest.mark.browser

MARGIN = 0.04
SCENES = 20


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with running_server(ROOT / "serve_config.yaml") as url:
        yield f"{url}/"


@pytest.fixture
def page(browser: Browser, server: str) -> Iterator[Page]:
    for page in opened(browser, server):
        page.get_by_role("button", name="Shapes").click()
        wait_for_picture(page, "scene.png")
        page.set_default_timeout(60_000)
        yield page


def test_the_first_click_gets_a_right_caption(page: Page) -> None:
    page.get_by_text("More settings").click()
    page.get_by_label("Caption length").select_option("short")
    run(page)
    expect(page.get_by_test_id("answer")).to_have_text(CAPTION, timeout=60_000)
    expect(page.locator(".figures")).to_contain_text("First token")
    expect(page.locator(".figures")).to_contain_text("moondream")


def test_a_question_gets_a_right_answer(page: Page) -> None:
    choose_task(page, "Ask")
    run(page)
    expect(page.get_by_test_id("answer")).to_have_text("blue", timeout=60_000)


def test_a_box_lies_over_the_circle(page: Page) -> None:
    choose_task(page, "Detect")
    run(page)
    mark = page.locator(".mark")
    expect(mark).to_have_count(1, timeout=60_000)
    box, frame = mark.bounding_box(), page.locator(".frame").bounding_box()
    assert box is not None
    assert frame is not None
    left, top = (box["x"] - frame["x"]) / frame["width"], (box["y"] - frame["y"]) / frame["height"]
    width, height = box["width"] / frame["width"], box["height"] / frame["height"]
    red = find_red()
    drawn = (left, top, left + width, top + height)
    assert drawn == pytest.approx((red.x_min, red.y_min, red.x_max, red.y_max), abs=MARGIN)


def test_preprocessing_shows_the_picture(page: Page) -> None:
    run(page)
    page.get_by_role("tab", name="Preprocessing").click()
    expect(page.locator(".side-by-side img")).to_have_count(2, timeout=60_000)
    expect(page.locator(".result")).to_contain_text("The model then scales it to")


def test_a_folder_of_drawn_scenes_is_captioned_by_jobs(page: Page, tmp_path: Path) -> None:
    captions = {}
    for number in range(SCENES):
        scene, data, url = draw_scene(number, max_side=128)
        name = f"{number:02}.{url.split(';')[0].rpartition('/')[2]}"
        (tmp_path / name).write_bytes(data)
        captions[name] = scene.caption("short")
    page.get_by_role("tab", name="Jobs").click()
    drop(page, tmp_path)
    expect(page.get_by_text(f"{SCENES} pictures ready")).to_be_visible()
    jobs = page.locator(".jobs")
    jobs.get_by_text("More settings").click()
    jobs.get_by_label("Caption length").select_option("short")
    submit(page)
    expect(page.get_by_test_id("progress")).to_have_text(
        f"{SCENES} of {SCENES} uploaded · {SCENES} succeeded", timeout=120_000
    )
    told = {
        card.locator(".job-name").inner_text(): card.locator(".job-answer").inner_text()
        for card in page.locator(".job").all()
    }
    wrong = [name for name, caption in captions.items() if told[name] != caption]
    assert len(wrong) <= SCENES // 10, told
    page.reload()
    expect(page.locator(".job[data-state=succeeded]")).to_have_count(SCENES)


def test_two_models_caption_the_scene_side_by_side(page: Page) -> None:
    page.get_by_role("tab", name="Compare").click()
    page.locator(".compare").get_by_text("More settings").click()
    page.locator("#compare-field-caption_length").select_option("short")
    page.locator("#compare-1-model").select_option("qwen2.5-vl")
    run_both(page)
    for index, model in enumerate(("moondream", "qwen2.5-vl")):
        expect(side(page, index).get_by_test_id("answer")).to_have_text(CAPTION, timeout=60_000)
        expect(side(page, index).locator(".figures")).to_contain_text(model)
    expect(page.locator(".verdict")).to_contain_text("The answers are the same.")


def test_a_chat_knows_what_a_picture_and_a_video_show(page: Page) -> None:
    open_chat(page)
    page.locator("#chat-model").select_option("qwen2.5-vl")
    expect(page.locator(".chat .settings")).to_contain_text("Takes several pictures. Reads videos.")
    page.get_by_role("button", name="Shapes").click()
    expect(attached(page)).to_have_count(1)
    say(page, "What color is the square?")
    expect(answers(page)).to_have_text("blue", timeout=60_000)
    page.get_by_role("button", name="New chat").click()
    attach(page, CLIP)
    expect(attached(page)).to_have_count(1)
    say(page, "Describe the video.")
    seen = "a white triangle at the center and an orange triangle at the bottom left"
    expect(answers(page)).to_have_text(seen, timeout=60_000)
    expect(page.locator(".figures-line")).to_contain_text("in, ")


def test_the_limits_of_models_are_told(page: Page) -> None:
    open_chat(page)
    page.locator("#chat-model").select_option("moondream")
    attach(page, CLIP, CLIP)
    problem = page.locator(".composer .notice")
    expect(problem).to_contain_text("moondream takes 1 picture or video in a chat; this one has 2.")
    page.locator("#chat-model").select_option("smolvlm")
    expect(problem).to_have_count(0)
    expect(page.get_by_text("smolvlm reads no videos: it gets 4 frames")).to_be_visible()


def test_the_models_and_their_figures_are_shown(page: Page) -> None:
    run(page)
    expect(page.locator(".figures")).to_contain_text("Tokens/s", timeout=60_000)
    page.get_by_role("tab", name="Status").click()
    for name in ("moondream", "smolvlm", "qwen2.5-vl"):
        model = page.get_by_role("region", name=name)
        expect(model).to_contain_text("Loaded")
        expect(model).to_contain_text("1 of 1 running")
    requests = page.get_by_role("region", name="Server").get_by_role("listitem").first
    expect(requests).to_contain_text(re.compile(r"[1-9]\d* in total"), timeout=60_000)
    expect(page.get_by_role("link", name="Ray dashboard")).to_be_visible()


def saved_results(page: Page, live: Locator) -> list[dict[str, Any]]:
    download = saved(page, live.get_by_role("button", name="Save results").click)
    lines = [json.loads(line) for line in Path(download.path()).read_text().splitlines()]
    return [line for line in lines if line["type"] == "result"]


def ask_live(live: Locator) -> None:
    """Look for the circle, then ask about the square; the camera shows the scene."""
    live.get_by_label("Object to find").fill("red circle")
    expect(answer(live)).to_contain_text("1 match for “red circle”: #", timeout=60_000)
    live.get_by_role("radio", name="Ask").check()
    live.get_by_label("Question").fill("What color is the square?")
    expect(answer(live)).to_have_text("blue", timeout=60_000)


def test_live_video_gets_right_words_and_boxes(page: Page, server: str) -> None:
    live = open_tab(page)
    with page.expect_response("**/api/v1/webrtc/offer") as offered:
        start(live, WEBRTC)
    session = f"{server}api/v1/webrtc/offer/{offered.value.json()['sessionId']}"
    assert httpx.get(session).json()["status"] == "connected"
    ask_live(live)
    expect(live.get_by_role("list", name="Events")).to_contain_text("“red circle” started (1)")
    boxes = [box for result in saved_results(page, live) for box in result.get("objects", ())]
    red = find_red()
    for name in ("x_min", "y_min", "x_max", "y_max"):
        assert boxes[-1][name] == pytest.approx(getattr(red, name), abs=MARGIN)
    stop(live)
    expect(live.locator(".state")).to_have_text("Ended")
    with httpx.Client() as http:
        for _ in range(100):
            if http.get(session).json()["status"] == "ended":
                break
        assert http.get(session).json()["reason"] == "the client has ended it"


def test_live_video_over_a_websocket_gets_the_same(page: Page) -> None:
    page.route("**/ice-servers", lambda route: route.fulfill(status=404, json={"detail": "off"}))
    live = open_tab(page)
    start(live, SOCKET)
    live.get_by_label("Object to find").fill("red circle")
    mark = live.get_by_role("button", name="red circle #1:")
    mark.wait_for()
    red = find_red()
    expected = (red.x_min, red.y_min, red.x_max, red.y_max)
    assert bounds(mark, live.locator(".frame")) == pytest.approx(expected, abs=MARGIN)
    ask_live(live)
