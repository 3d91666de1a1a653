"""The tab "Live", used as a person does, over WebRTC and over a WebSocket."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Download, Locator, Page, Playwright, Route, expect

from raylens.core.errors import ModelFailed
from raylens.core.keys import hash_key
from raylens.core.types import Caption, Detect, Length, Query
from raylens.realtime.overlay import GREEN
from raylens.realtime.plugins import load_registry
from testing.moving_circle import find, iou
from testing.ports import free_port
from tests.browser.conftest import GRANTED, launched, opened
from tests.browser.site import CAPTION, SCENE, Site, find_red, serving
from tests.clients.browser import read_data_url

pytestmark = pytest.mark.browser

WEBRTC = "Live over WebRTC"
SOCKET = "Live over WebSocket"
CONNECT_MS = 30_000
WAIT_S = 20.0
PLUGIN = """
from typing import ClassVar
import pluggy
from pydantic import BaseModel, Field

hookimpl = pluggy.HookimplMarker("scope")

class TintConfig(BaseModel):
    pipeline_id: ClassVar[str] = "tint"
    pipeline_name: ClassVar[str] = "Tint"
    pipeline_description: ClassVar[str] = "Tints frames."
    strength: float = Field(0.0, ge=0, le=1, json_schema_extra={"ui": {}})
    depth: int = Field(1, ge=1, le=2, json_schema_extra={"ui": {"is_load_param": True}})

class TintPipeline:
    get_config_class = classmethod(lambda cls: TintConfig)

    def __init__(self, **_):
        pass

    def __call__(self, video, strength, **_):
        output = video[0].float() / 255
        output[..., 0] += strength * (1 - output[..., 0])
        return {"video": output}

@hookimpl
def register_pipelines(register):
    register(TintPipeline)
"""


@pytest.fixture
def live(page: Page, site: Site) -> Iterator[Locator]:
    yield open_tab(page)
    wait_until(lambda: site.sessions.count == 0 or leave(page))


def open_tab(page: Page) -> Locator:
    page.get_by_role("tab", name="Live").click()
    return page.locator(".live")


def leave(page: Page) -> bool:
    page.goto("about:blank")
    return False


def wait_until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def start(live: Locator, state: str = WEBRTC) -> None:
    live.get_by_role("button", name="Start", exact=True).click()
    expect(live.locator(".state")).to_have_text(state, timeout=CONNECT_MS)


def stop(live: Locator) -> None:
    live.get_by_role("button", name="Stop", exact=True).click()


def answer(live: Locator) -> Locator:
    return live.get_by_test_id("live-answer")


def press(live: Locator, name: str) -> None:
    live.get_by_role("button", name=name, exact=True).click()


def saved(page: Page, click: Callable[[], None]) -> Download:
    with page.expect_download() as caught:
        click()
    return caught.value


def frame_of(live: Locator) -> Any:
    """Return the pixels of the video that is shown."""
    script = """async (video) => {
      while (!video.videoWidth) await new Promise((resolve) => setTimeout(resolve, 50))
      const canvas = document.createElement('canvas')
      Object.assign(canvas, { width: video.videoWidth, height: video.videoHeight })
      canvas.getContext('2d').drawImage(video, 0, 0)
      return canvas.toDataURL('image/png')
    }"""
    return read_data_url(live.locator("video").evaluate(script))


@contextmanager
def visiting(browser: Browser, **config: Any) -> Iterator[tuple[Site, Page, Locator]]:
    """Open the tab of a server of its own."""
    with serving(**config) as site:
        for page in opened(browser, site.url):
            yield site, page, open_tab(page)


@pytest.fixture
def over_socket(browser: Browser) -> Iterator[tuple[Site, Locator]]:
    """The tab of a server without WebRTC."""
    with visiting(browser, has_webrtc=False) as (site, _, live):
        yield site, live


def test_the_camera_comes_back_with_boxes_and_figures(live: Locator, site: Site) -> None:
    start(live)
    expect(answer(live)).to_have_text("2 matches for “person”.")
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


def test_settings_change_while_it_runs(live: Locator, site: Site) -> None:
    start(live)
    expect(answer(live)).to_be_visible()
    live.get_by_label("Detect Object").fill("red circle")
    expect(answer(live)).to_have_text("2 matches for “red circle”.")
    wait_until(lambda: site.service.requests[-1].task == Detect("red circle", 10))
    live.get_by_role("radio", name="Ask").check()
    live.get_by_label("Question").fill("What is it?")
    live.locator("#live-model").select_option("smolvlm")
    expect(answer(live)).to_have_text(CAPTION)
    wait_until(lambda: site.service.requests[-1].task == Query("What is it?"))
    wait_until(lambda: site.service.requests[-1].model == "smolvlm")
    live.get_by_role("radio", name="Caption").check()
    live.get_by_text("More settings").click()
    live.get_by_label("Caption Length").select_option("short")
    wait_until(lambda: site.service.requests[-1].task == Caption(Length.SHORT))
    assert site.sessions.count == 1


def test_only_settings_with_an_effect_are_shown(live: Locator) -> None:
    expect(live.get_by_label("Detect Object")).to_be_visible()
    expect(live.get_by_label("Question")).to_have_count(0)
    live.get_by_text("Events", exact=True).click()
    expect(live.get_by_label("Objects Of An Event", exact=True)).to_be_visible()
    live.get_by_role("radio", name="Caption").check()
    expect(live.get_by_text("Events", exact=True)).to_have_count(0)
    expect(live.get_by_label("Detect Object")).to_have_count(0)


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
    live.get_by_label("Detect Object").fill("cat")
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


def test_pause_stops_the_questions_and_resume_goes_on(live: Locator, site: Site) -> None:
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
    live: Locator, site: Site
) -> None:
    site.service.error = ModelFailed("out of memory")
    start(live)
    expect(live.get_by_role("alert")).to_contain_text("There was no answer about a frame.")
    site.service.error = None
    expect(answer(live)).to_be_visible()
    expect(live.get_by_role("alert")).to_have_count(0)


def test_a_mirror_shows_the_page_its_own_boxes(live: Locator) -> None:
    start(live)
    expect(live.locator(".mark")).to_have_count(0)
    press(live, "Mirror")
    mark = live.get_by_role("button", name="person 1:")
    mark.wait_for()
    assert bounds(mark, live.locator(".frame")) == pytest.approx(mirrored_red(), abs=0.02)


def bounds(mark: Locator, frame: Locator) -> tuple[float, float, float, float]:
    """Return where a mark is, in fractions of the frame."""
    box, outer = mark.bounding_box(), frame.bounding_box()
    assert box is not None
    assert outer is not None
    left, top = (box["x"] - outer["x"]) / outer["width"], (box["y"] - outer["y"]) / outer["height"]
    return left, top, left + box["width"] / outer["width"], top + box["height"] / outer["height"]


def mirrored_red() -> tuple[float, float, float, float]:
    red = find_red()
    return 1 - red.x_max, red.y_min, 1 - red.x_min, red.y_max


def test_without_webrtc_pictures_go_over_a_websocket(over_socket: tuple[Site, Locator]) -> None:
    site, live = over_socket
    start(live, SOCKET)
    expect(live.locator(".right > .notice")).to_contain_text(
        "This server has no WebRTC. Pictures go over a WebSocket instead"
    )
    mark = live.get_by_role("button", name="person 1:")
    mark.wait_for()
    red = find_red()
    expected = (red.x_min, red.y_min, red.x_max, red.y_max)
    assert bounds(mark, live.locator(".frame")) == pytest.approx(expected, abs=0.02)
    assert site.service.requests[0].task == Detect("person", 10)
    for name in ("Delay", "Frames/s", "Answers/s", "Dropped frames", "Sent, received", "moondream"):
        expect(live.locator(".figures")).to_contain_text(name)
    expect(live.get_by_text("Events", exact=True)).to_have_count(0)
    site.service.gate.clear()
    live.get_by_role("radio", name="Ask").check()
    live.get_by_label("Question").fill("What is it?")
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


def count_sockets(site: Site) -> int:
    return site.shared.sessions.held("127.0.0.1")


def test_a_setting_that_a_websocket_refuses_gets_a_sentence(
    over_socket: tuple[Site, Locator],
) -> None:
    _, live = over_socket
    start(live, SOCKET)
    live.get_by_label("Detect Object").fill("")
    expect(live.locator(".settings").get_by_role("alert")).to_contain_text("Prompt: expected")


@pytest.mark.parametrize("has_webrtc", [True, False])
def test_leaving_the_page_ends_the_session(browser: Browser, has_webrtc: bool) -> None:
    with visiting(browser, has_webrtc=has_webrtc) as (site, page, live):
        start(live, WEBRTC if has_webrtc else SOCKET)
        assert site.sessions.count + count_sockets(site) == 1
        page.get_by_role("tab", name="Try").click()
        expect(page.get_by_role("tab", name="Live ●")).to_be_visible()
        assert site.sessions.count + count_sockets(site) == 1
        page.goto("about:blank")
        wait_until(lambda: site.sessions.count + count_sockets(site) == 0)


@pytest.mark.parametrize("has_webrtc", [True, False])
def test_a_recording_can_be_played(browser: Browser, has_webrtc: bool) -> None:
    with visiting(browser, has_webrtc=has_webrtc) as (site, page, live):
        start(live, WEBRTC if has_webrtc else SOCKET)
        expect(answer(live)).to_be_visible()
        press(live, "Record")
        count = len(site.service.requests)
        wait_until(lambda: len(site.service.requests) > count + 10)
        download = saved(page, lambda: press(live, "Stop and save"))
        assert download.suggested_filename.endswith(".webm")
        stream = probe(Path(download.path()))
        assert (stream["width"], stream["height"]) == (480, 360)
        assert int(stream["nb_read_frames"]) >= 5


def probe(video: Path) -> dict[str, Any]:
    command = ["ffprobe", "-v", "error", "-count_frames", "-show_streams", "-of", "json"]
    output = subprocess.run([*command, str(video)], check=True, capture_output=True).stdout
    (stream,) = json.loads(output)["streams"]
    return dict(stream)


def test_a_snapshot_opens_in_the_tab_try(page: Page, live: Locator, site: Site) -> None:
    start(live)
    press(live, "Snapshot to Try")
    page.locator(".try .frame img[alt*='snapshot.jpg']").wait_for()
    expect(page.locator(".try .about")).to_contain_text("480 × 360")
    count = len(site.service.pictures)
    wait_until(lambda: len(site.service.pictures) > count)  # it goes on
    expect(page.get_by_role("tab", name="Live ●")).to_be_visible()


def test_a_video_file_is_shown_in_a_loop(live: Locator, site: Site, tmp_path: Path) -> None:
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
    expect(live.get_by_role("alert")).to_contain_text("notes.mp4 can’t be played by this browser.")
    expect(live.get_by_role("button", name="Start", exact=True)).to_be_visible()


def choose_file(live: Locator, name: str, content: bytes) -> None:
    file = {"name": name, "mimeType": "video/mp4", "buffer": content}
    live.locator("input[type=file]").set_input_files(file)  # type: ignore[arg-type]


def test_a_session_that_the_server_ends_for_a_restart_begins_again(
    live: Locator, site: Site
) -> None:
    start(live)
    site.sessions.stop("this part of the server is about to stop")
    expect(live.get_by_role("alert")).to_contain_text("The server ended the session. This part of")
    expect(live.get_by_role("alert")).to_contain_text("Trying again in")
    expect(live.locator(".state")).to_have_text(WEBRTC, timeout=CONNECT_MS)
    expect(live.get_by_role("alert")).to_have_count(0)
    assert site.sessions.count == 1


def test_a_server_that_drains_is_waited_for(over_socket: tuple[Site, Locator]) -> None:
    site, live = over_socket
    start(live, SOCKET)
    site.drains.set()
    expect(live.get_by_role("alert")).to_contain_text("The server is restarting.")
    site.drains.clear()
    expect(live.locator(".state")).to_have_text(SOCKET, timeout=CONNECT_MS)


def test_a_server_that_comes_back_is_found_again(browser: Browser) -> None:
    port = free_port()
    with serving(port=port, has_webrtc=False) as site:
        pages = opened(browser, site.url)
        live = open_tab(next(pages))
        start(live, SOCKET)
    expect(live.get_by_role("alert")).to_contain_text("Trying again in")
    expect(live.locator(".state")).to_have_text("Reconnecting…")
    with serving(port=port, has_webrtc=False):
        press(live, "Try now")
        expect(live.locator(".state")).to_have_text(SOCKET, timeout=CONNECT_MS)
        next(pages, None)


def test_a_session_too_many_waits_until_there_is_room(browser: Browser) -> None:
    limits = {"webrtc": {"max_sessions_per_client": 1}}
    with visiting(browser, realtime=limits) as (site, _, live):
        start(live)
        for page in opened(browser, site.url):
            other = open_tab(page)
            press(other, "Start")
            expect(other.get_by_role("alert")).to_contain_text("the limit is 1")
            stop(live)
            expect(other.locator(".state")).to_have_text(WEBRTC, timeout=CONNECT_MS)


def test_a_session_that_is_idle_ends_with_a_sentence(browser: Browser) -> None:
    with visiting(browser, has_webrtc=False, realtime={"idle_timeout_s": 0.5}) as (_, _, live):
        start(live, SOCKET)
        press(live, "Pause")
        expect(live.get_by_role("alert")).to_contain_text("since no picture came")
        expect(live.locator(".state")).to_have_text("Ended")


def write_key(file: Path, name: str, key: str) -> None:
    file.write_text(json.dumps({"keys": [{"name": name, "hash": hash_key(key)}]}))


@pytest.mark.parametrize("has_webrtc", [True, False])
def test_the_key_reaches_the_session(browser: Browser, tmp_path: Path, has_webrtc: bool) -> None:
    keys = tmp_path / "keys.yaml"
    write_key(keys, "me", "rl-mine")
    with visiting(browser, has_webrtc=has_webrtc, auth={"keys_file": str(keys)}) as (_, page, live):
        expect(live.get_by_role("alert")).to_contain_text("This server needs an API key.")
        live.get_by_role("button", name="Enter key").click()
        page.get_by_label("API key").fill("rl-mine")
        page.get_by_label("API key").press("Enter")
        start(live, WEBRTC if has_webrtc else SOCKET)
        expect(answer(live)).to_be_visible()
        if not has_webrtc:
            write_key(keys, "you", "rl-yours")
            expect(live.get_by_role("alert")).to_contain_text("does not know this API key")
            expect(live.locator(".state")).to_have_text("Ended")


def drop_candidates(route: Route) -> None:
    if route.request.method == "PATCH":
        route.fulfill(status=204)
    else:
        route.continue_()


def test_webrtc_without_a_way_through_falls_back(browser: Browser) -> None:
    with visiting(browser, realtime={"webrtc": {"public_address": "203.0.113.1"}}) as (
        site,
        page,
        live,
    ):
        # Without the browser's candidates, only the server's could lead to a connection.
        page.route("**/offer/*", drop_candidates)
        start(live, SOCKET)
        expect(live.locator(".right > .notice")).to_contain_text("the server needs a TURN server")
        wait_until(lambda: site.sessions.count == 0)


@contextmanager
def bare(playwright: Playwright, url: str, *arguments: str) -> Iterator[Locator]:
    """Open the tab in a browser of its own."""
    with launched(playwright, *arguments) as browser:
        page = browser.new_page()
        page.goto(url)
        yield open_tab(page)


def test_a_camera_that_is_denied_gets_a_sentence(playwright: Playwright, site: Site) -> None:
    with bare(playwright, site.url, f"{GRANTED}=deny") as live:
        press(live, "Start")
        expect(live.get_by_role("alert")).to_contain_text("The browser may not use the camera.")
        assert site.sessions.count == 0


def test_a_page_without_https_says_what_cameras_need(playwright: Playwright) -> None:
    with serving(allowed_hosts=["site.test"]) as site:
        url = site.url.replace("127.0.0.1", "site.test")
        with bare(playwright, url, GRANTED) as live:
            press(live, "Start")
            expect(live.get_by_role("alert")).to_contain_text("only to pages over https")


@pytest.fixture
def _plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package in Scope's form, installed."""
    (tmp_path / "tint_plugin.py").write_text(PLUGIN)
    metadata = tmp_path / "tint_plugin-0.2.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: tint-plugin\nVersion: 0.2\n")
    (metadata / "entry_points.txt").write_text("[scope]\ntint = tint_plugin\n")
    monkeypatch.syspath_prepend(tmp_path)
    load_registry.cache_clear()
    yield
    load_registry.cache_clear()


@pytest.mark.usefixtures("_plugin")
def test_a_plugin_needs_no_change_of_the_page(live: Locator) -> None:
    live.get_by_label("Pipeline").select_option("Tint")
    expect(live.get_by_text("Tints frames.")).to_be_visible()
    live.get_by_text("More settings").click()
    expect(live.get_by_label("Depth", exact=True)).to_be_visible()
    start(live)
    expect(live.get_by_label("Depth", exact=True)).to_have_count(0)  # of the start only
    scene = np.asarray(Image.open(SCENE).convert("RGB"))

    def redness() -> float:
        return float(frame_of(live)[..., 0].mean())

    wait_until(lambda: abs(redness() - scene[..., 0].mean()) < 15)
    live.get_by_label("Strength, value").fill("1")
    live.get_by_label("Strength, value").blur()
    wait_until(lambda: redness() > 235)
