"""The tab "Live", used as a person does, over WebRTC and over a WebSocket."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from raylens.core.errors import ModelFailed
from raylens.core.types import Caption, Detect, Length, Query
from raylens.realtime.overlay import GREEN
from testing.moving_circle import find, iou
from tests.browser.conftest import opened, visiting
from tests.browser.live_page import (
    CONNECT_MS,
    SOCKET,
    WEBRTC,
    answer,
    bounds,
    count_sockets,
    frame_of,
    open_tab,
    press,
    saved,
    start,
    stop,
    wait_until,
)
from tests.browser.site import CAPTION, SCENE, LiveSite, find_red, serving

pytestmark = pytest.mark.browser


def test_the_camera_comes_back_with_boxes_and_figures(live: Locator, site: LiveSite) -> None:
    start(live)
    expect(answer(live)).to_have_text("2 matches for “person”: #1, #2.")
    for name in ("Delay", "Frames/s", "Answers/s", "Dropped frames", "Sent, received", "moondream"):
        expect(live.locator(".figures")).to_contain_text(name)
    expect(live.get_by_role("img", name="Delays of the last")).to_be_visible()
    assert site.service.requests[0].task == Detect("person", 10)
    assert site.sessions.count == 1

    def fits() -> bool:
        pixels = frame_of(live)
        height, width = pixels.shape[:2]
        red = find_red()
        left, right = int(red.x_min * width), int(red.x_max * width)
        top, bottom = int(red.y_min * height), int(red.y_max * height)
        # Without the other box, which has the size of the picture, and without labels.
        window = pixels[top - 4 : bottom + 12, left - 12 : right + 12]
        box = find(window, GREEN)
        return box is not None and iou(box, (12, 4, right - left + 12, bottom - top + 4)) > 0.8

    wait_until(fits)
    stop(live)
    expect(live.locator(".state")).to_have_text("Ended")
    wait_until(lambda: site.sessions.count == 0)


def test_settings_change_while_it_runs(live: Locator, site: LiveSite) -> None:
    start(live)
    expect(answer(live)).to_be_visible()
    live.get_by_label("Object to find").fill("red circle")
    expect(answer(live)).to_have_text("2 matches for “red circle”: #1, #2.")
    wait_until(lambda: site.service.requests[-1].task == Detect("red circle", 10))
    live.get_by_role("radio", name="Ask").check()
    live.get_by_label("Question").fill("What is it?")
    live.locator("#live-model").select_option("smolvlm")
    expect(answer(live)).to_have_text(CAPTION)
    wait_until(lambda: site.service.requests[-1].task == Query("What is it?"))
    wait_until(lambda: site.service.requests[-1].model == "smolvlm")
    live.get_by_role("radio", name="Caption").check()
    live.get_by_text("More settings").click()
    live.get_by_label("Caption length").select_option("short")
    wait_until(lambda: site.service.requests[-1].task == Caption(Length.SHORT))
    assert site.sessions.count == 1


@pytest.mark.parametrize("has_webrtc", [True, False])
def test_an_answer_goes_with_its_question(browser: Browser, has_webrtc: bool) -> None:
    with visiting(browser, has_webrtc=has_webrtc) as (site, _, live):
        start(live, WEBRTC if has_webrtc else SOCKET)
        expect(answer(live)).to_contain_text("“person”")
        note_answers(live)
        site.service.gate.clear()
        count = len(site.service.requests)
        wait_until(lambda: len(site.service.requests) > count)  # about “person”
        live.get_by_role("radio", name="Caption").check()
        expect(live.get_by_text("Waiting for an answer…")).to_be_visible()
        expect(live.locator(".figures")).to_contain_text("moondream")
        site.service.gate.set()
        expect(answer(live)).to_have_text(CAPTION)
        assert "2 matches for “”: #1, #2." not in live.evaluate("window.answers")


def note_answers(live: Locator) -> None:
    """Have the page note each answer that it shows."""
    live.evaluate("""(tab) => {
      window.answers = []
      const note = () => {
        const shown = tab.querySelector('[data-testid=live-answer]')
        if (shown) window.answers.push(shown.textContent)
      }
      const all = { subtree: true, childList: true, characterData: true }
      new MutationObserver(note).observe(tab, all)
    }""")


def test_only_settings_with_an_effect_are_shown(live: Locator) -> None:
    expect(live.get_by_label("Object to find")).to_be_visible()
    expect(live.get_by_label("Question")).to_have_count(0)
    live.get_by_text("Events", exact=True).click()
    expect(live.get_by_label("Objects of an event", exact=True)).to_be_visible()
    live.get_by_role("radio", name="Caption").check()
    expect(live.get_by_text("Events", exact=True)).to_have_count(0)
    expect(live.get_by_label("Object to find")).to_have_count(0)


def test_a_setting_out_of_range_gets_the_servers_sentence(live: Locator) -> None:
    start(live)
    live.get_by_role("radio", name="Caption").check()
    live.get_by_text("More settings").click()
    live.get_by_label("Frames, value").fill("200")
    live.get_by_label("Frames, value").blur()
    expect(live.locator(".settings").get_by_role("alert")).to_contain_text("the limit is 16")
    live.get_by_label("Frames, value").fill("1")
    live.get_by_label("Frames, value").blur()
    expect(live.locator(".settings").get_by_role("alert")).to_have_count(0)


def test_events_are_listed_and_results_saved(page: Page, live: Locator) -> None:
    start(live)
    expect(live.get_by_role("list", name="Events")).to_contain_text("“person” started (2)")
    live.get_by_label("Object to find").fill("cat")
    expect(live.get_by_role("list", name="Events")).to_contain_text("“person” ended after")
    download = saved(page, lambda: press(live, "Save results"))
    lines = [json.loads(line) for line in Path(download.path()).read_text().splitlines()]
    kinds = {line["type"] for line in lines}
    assert kinds == {"result", "event"}
    results = [line for line in lines if line["type"] == "result"]
    red = find_red()
    assert results[0]["objects"][0]["x_min"] == pytest.approx(red.x_min, abs=0.01)
    assert all(line["at"] for line in lines)
    events = [line["event"]["type"] for line in lines if line["type"] == "event"]
    assert events[:2] == ["started", "ended"]


def test_pause_stops_the_questions_and_resume_goes_on(live: Locator, site: LiveSite) -> None:
    start(live)
    expect(answer(live)).to_be_visible()
    press(live, "Pause")
    expect(live.locator(".state")).to_have_text("Paused")
    count = [-1]

    def is_quiet() -> bool:
        last, count[0] = count[0], len(site.service.requests)
        time.sleep(0.5)
        return last == len(site.service.requests)

    wait_until(is_quiet)
    press(live, "Resume")
    wait_until(lambda: len(site.service.requests) > count[0])


def test_a_frame_without_an_answer_gets_a_sentence_until_the_next_one(
    live: Locator, site: LiveSite
) -> None:
    site.service.error = ModelFailed("out of memory")
    start(live)
    expect(live.get_by_role("alert")).to_contain_text("One frame got no answer.")
    site.service.error = None
    expect(answer(live)).to_be_visible()
    expect(live.get_by_role("alert")).to_have_count(0)


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1440, 900)])
def test_the_answer_is_in_sight_beside_the_video(
    page: Page, live: Locator, width: int, height: int
) -> None:
    page.set_viewport_size({"width": width, "height": height})
    live.get_by_text("More settings").click()
    live.get_by_text("Events", exact=True).click()
    start(live)
    expect(answer(live)).to_be_visible()
    page.evaluate("scrollTo(0, 0)")
    expect(live.locator("video")).to_be_in_viewport(ratio=1)
    expect(answer(live)).to_be_in_viewport(ratio=1)
    expect(live.locator(".figures dt", has_text="Delay")).to_be_in_viewport(ratio=1)


def test_boxes_go_with_the_first_answer_that_has_none(
    over_socket: tuple[LiveSite, Locator],
) -> None:
    site, live = over_socket
    start(live, SOCKET)
    expect(live.locator(".mark")).to_have_count(2)
    site.service.finds_nothing = True
    expect(answer(live)).to_have_text("No “person” found.")
    expect(live.locator(".mark")).to_have_count(0)


def test_a_mirror_shows_the_page_its_own_boxes(live: Locator) -> None:
    start(live)
    expect(live.locator(".mark")).to_have_count(0)
    press(live, "Mirror")
    mark = live.get_by_role("button", name="person #1:")
    mark.wait_for()
    assert bounds(mark, live.locator(".frame")) == pytest.approx(mirrored_red(), abs=0.02)
    color = f"rgb{GREEN}"  # as the server draws them
    expect(mark).to_have_css("border-color", color)
    expect(mark.locator(".label")).to_have_css("background-color", color)


def mirrored_red() -> tuple[float, float, float, float]:
    red = find_red()
    return 1 - red.x_max, red.y_min, 1 - red.x_min, red.y_max


def test_without_webrtc_pictures_go_over_a_websocket(over_socket: tuple[LiveSite, Locator]) -> None:
    site, live = over_socket
    start(live, SOCKET)
    expect(live.locator(".right > .notice")).to_contain_text(
        "This server does not offer WebRTC. Pictures go over a WebSocket instead"
    )
    mark = live.get_by_role("button", name="person #1:")
    mark.wait_for()
    red = find_red()
    expected = (red.x_min, red.y_min, red.x_max, red.y_max)
    assert bounds(mark, live.locator(".frame")) == pytest.approx(expected, abs=0.02)
    assert site.service.requests[0].task == Detect("person", 10)
    for name in ("Delay", "Frames/s", "Answers/s", "Dropped frames", "Sent, received", "moondream"):
        expect(live.locator(".figures")).to_contain_text(name)
    expect(live.get_by_text("Events", exact=True)).to_have_count(0)
    live.get_by_role("radio", name="Ask").check()
    live.get_by_label("Question").fill("What is it?")
    expect(answer(live)).to_have_text(CAPTION)
    site.service.gate.clear()
    expect(answer(live)).to_have_text("a")
    expect(live.locator(".words")).to_have_text("a")
    site.service.gate.set()
    expect(answer(live)).to_have_text(CAPTION)
    wait_until(lambda: site.service.requests[-1].task == Query("What is it?"))
    assert site.service.requests[-1].sampling.temperature == 0.5
    press(live, "Mirror")
    live.get_by_role("radio", name="Detect").check()
    mark.wait_for()
    assert bounds(mark, live.locator(".frame")) == pytest.approx(mirrored_red(), abs=0.02)
    stop(live)
    wait_until(lambda: count_sockets(site) == 0)


def test_a_setting_that_a_websocket_refuses_gets_a_sentence(
    over_socket: tuple[LiveSite, Locator],
) -> None:
    site, live = over_socket
    start(live, SOCKET)
    expect(answer(live)).to_be_visible()
    live.get_by_label("Object to find").fill("")
    expect(live.locator(".settings").get_by_role("alert")).to_contain_text("Prompt: expected")
    count = len(site.service.requests)
    wait_until(lambda: len(site.service.requests) > count + 2)
    expect(answer(live)).to_have_count(0)  # what the server still looks for is no longer asked
    live.get_by_label("Object to find").fill("cat")
    expect(answer(live)).to_contain_text("“cat”")


@pytest.mark.parametrize("has_webrtc", [True, False])
def test_a_recording_can_be_played(browser: Browser, has_webrtc: bool) -> None:
    with visiting(browser, has_webrtc=has_webrtc) as (site, page, live):
        start(live, WEBRTC if has_webrtc else SOCKET)
        expect(answer(live)).to_be_visible()
        press(live, "Record")
        time_shown = live.get_by_role("timer", name="Length of the recording")
        expect(time_shown).to_have_text(re.compile(r"^0:\d\d$"))
        count = len(site.service.requests)
        wait_until(lambda: len(site.service.requests) > count + 10)
        expect(time_shown).not_to_have_text("0:00")
        download = saved(page, lambda: press(live, "Stop and save"))
        assert download.suggested_filename.endswith(".webm")
        expect(live.get_by_text(f"Saved as {download.suggested_filename}.")).to_be_visible()
        expect(time_shown).to_have_count(0)
        stream = probe(Path(download.path()))
        assert (stream["width"], stream["height"]) == (480, 360)
        assert int(stream["nb_read_frames"]) >= 5
        stop(live)
        start(live, WEBRTC if has_webrtc else SOCKET)
        expect(live.get_by_text("Saved as")).to_have_count(0)


def probe(video: Path) -> dict[str, Any]:
    command = ["ffprobe", "-v", "error", "-count_frames", "-show_streams", "-of", "json"]
    output = subprocess.run([*command, str(video)], check=True, capture_output=True).stdout
    (stream,) = json.loads(output)["streams"]
    return dict(stream)


def test_a_snapshot_opens_in_the_tab_try(page: Page, live: Locator, site: LiveSite) -> None:
    start(live)
    press(live, "Snapshot to Try")
    page.locator(".frame img[alt*='snapshot.jpg']").wait_for()
    expect(page.locator(".picture .about").first).to_contain_text("480 × 360")
    count = len(site.service.pictures)
    wait_until(lambda: len(site.service.pictures) > count)  # it goes on
    expect(page.get_by_role("tab", name="Live ●")).to_be_visible()


def test_a_video_file_is_shown_in_a_loop(live: Locator, site: LiveSite, tmp_path: Path) -> None:
    video = tmp_path / "scene.webm"
    command = ["ffmpeg", "-v", "error", "-loop", "1", "-i", str(SCENE), "-t", "0.5", "-r", "15"]
    subprocess.run([*command, str(video)], check=True)
    choose_file(live, video.name, video.read_bytes())
    expect(live.locator(".state")).to_have_text(WEBRTC, timeout=CONNECT_MS)
    expect(live.locator(".about")).to_have_text("scene.webm, in a loop")
    expect(answer(live)).to_be_visible()
    count = len(site.service.requests)
    wait_until(lambda: len(site.service.requests) > count + 20)


def test_a_file_that_is_no_video_gets_a_sentence(live: Locator) -> None:
    choose_file(live, "notes.mp4", b"hello")
    problem = live.get_by_role("alert")
    expect(problem).to_contain_text("notes.mp4 can’t be played by this browser.")
    expect(live.get_by_text("notes.mp4, in a loop")).to_have_count(0)
    start(live)  # the camera
    expect(problem).to_have_count(0)


def test_a_file_that_is_damaged_ends_the_session_with_a_sentence(
    live: Locator, site: LiveSite, tmp_path: Path
) -> None:
    video = tmp_path / "test.mp4"
    command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "testsrc=size=320x240", "-t", "2"]
    form = ["-pix_fmt", "yuv420p", "-movflags", "faststart"]  # the frames come last
    subprocess.run([*command, *form, str(video)], check=True)
    content = video.read_bytes()
    half = len(content) // 2
    choose_file(live, "half.mp4", content[:half] + bytes(half))
    expect(live.get_by_role("alert")).to_contain_text("half.mp4 is damaged", timeout=CONNECT_MS)
    expect(live.locator(".state")).to_have_text("Ended")
    expect(live.get_by_text("half.mp4, in a loop")).to_have_count(0)


def test_a_server_that_is_away_is_told_beside_the_video(browser: Browser) -> None:
    with serving() as site:
        pages = opened(browser, site.url)
        page = next(pages)
        live = open_tab(page)
        expect(live.get_by_role("button", name="Start", exact=True)).to_be_enabled()
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")  # asks at once
    notice = live.locator(".right > .notice")
    expect(notice).to_contain_text("The server does not answer at the moment.")
    press(live, "Start")
    expect(live.get_by_role("alert")).to_contain_text("The server does not answer. Trying again in")
    expect(notice).to_have_count(1)
    with serving(port=site.port):
        expect(live.locator(".state")).to_have_text(WEBRTC, timeout=CONNECT_MS)
        expect(notice).to_have_count(0)
        stop(live)
        next(pages, None)


def choose_file(live: Locator, name: str, content: bytes) -> None:
    file = {"name": name, "mimeType": "video/mp4", "buffer": content}
    live.locator("input[type=file]").set_input_files(file)  # type: ignore[arg-type]
