"""Sessions of the tab "Live" begin, break off, begin again and end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Playwright, Route, expect

from raylens.core.keys import hash_key
from testing.ports import free_port
from tests.browser.conftest import GRANTED, launched, opened, visiting
from tests.browser.live_page import (
    CONNECT_MS,
    SOCKET,
    WEBRTC,
    answer,
    count_sockets,
    open_tab,
    press,
    start,
    stop,
    wait_until,
)
from tests.browser.site import LiveSite, serving

pytestmark = pytest.mark.browser


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


def test_a_session_that_the_server_ends_for_a_restart_begins_again(
    live: Locator, site: LiveSite
) -> None:
    start(live)
    site.sessions.stop("this part of the server is about to stop")
    expect(live.get_by_role("alert")).to_contain_text("The server ended the session. This part of")
    expect(live.get_by_role("alert")).to_contain_text("Trying again in")
    expect(live.locator(".state")).to_have_text(WEBRTC, timeout=CONNECT_MS)
    expect(live.get_by_role("alert")).to_have_count(0)
    assert site.sessions.count == 1


def test_a_server_that_drains_is_waited_for(over_socket: tuple[LiveSite, Locator]) -> None:
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
        expect(live.get_by_role("alert")).to_contain_text("because no picture came")
        expect(live.locator(".state")).to_have_text("Ended")


def write_key(file: Path, name: str, key: str, **settings: object) -> None:
    file.write_text(json.dumps({"keys": [{"name": name, "hash": hash_key(key), **settings}]}))


@pytest.mark.parametrize("has_webrtc", [True, False])
def test_the_key_reaches_the_session(browser: Browser, tmp_path: Path, has_webrtc: bool) -> None:
    keys = tmp_path / "keys.yaml"
    write_key(keys, "me", "rl-mine")
    with visiting(browser, has_webrtc=has_webrtc, auth={"keys_file": str(keys)}) as (_, page, live):
        expect(page.get_by_role("alert")).to_contain_text("This server needs an API key.")
        expect(live.locator(".settings")).to_be_hidden()  # there are none yet
        page.get_by_role("button", name="Enter key").click()
        page.get_by_label("API key").fill("rl-mine")
        page.get_by_label("API key").press("Enter")
        start(live, WEBRTC if has_webrtc else SOCKET)
        expect(answer(live)).to_be_visible()
        if not has_webrtc:
            write_key(keys, "you", "rl-yours")
            expect(live.get_by_role("alert")).to_contain_text("does not know this API key")
            expect(live.locator(".state")).to_have_text("Ended")


def test_a_key_that_loses_its_scope_ends_the_session(browser: Browser, tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    write_key(keys, "me", "rl-mine")
    with visiting(browser, has_webrtc=False, auth={"keys_file": str(keys)}) as (_, page, live):
        page.get_by_role("button", name="Enter key").click()
        page.get_by_label("API key").fill("rl-mine")
        page.get_by_label("API key").press("Enter")
        start(live, SOCKET)
        write_key(keys, "me", "rl-mine", scopes=["jobs"])
        alert = live.get_by_role("alert")
        expect(alert).to_contain_text(
            "The server does not allow this. The key 'me' may not do this"
        )
        expect(alert.get_by_role("button", name="Enter key")).to_be_visible()


def test_a_session_is_ended_with_the_key_that_began_it(browser: Browser) -> None:
    auth = {"keys": [{"name": "me", "hash": hash_key("rl-mine")}]}
    with visiting(browser, auth=auth) as (site, page, live):
        page.get_by_role("button", name="Enter key").click()
        page.get_by_label("API key").fill("rl-mine")
        page.get_by_label("API key").press("Enter")
        start(live)
        page.get_by_text("Key set").click()
        page.get_by_role("button", name="Forget").click()
        with page.expect_response(lambda response: response.request.method == "DELETE") as caught:
            stop(live)
        assert caught.value.ok
        wait_until(lambda: site.sessions.count == 0)


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


def test_a_camera_that_is_unplugged_ends_the_session_and_another_one_can_be_chosen(
    over_socket: tuple[LiveSite, Locator],
) -> None:
    site, live = over_socket
    start(live, SOCKET)
    camera = live.get_by_role("combobox", name="Camera")
    expect(camera).to_be_disabled()
    name = camera.locator("option").nth(1).inner_text()  # named once it may be used
    unplug = """(video) => {
      const [track] = video.srcObject.getTracks()
      track.stop()
      track.dispatchEvent(new Event('ended'))
    }"""
    live.locator("video").evaluate(unplug)
    expect(live.get_by_role("alert")).to_contain_text("The camera was turned off or unplugged.")
    expect(live.locator(".state")).to_have_text("Ended")
    wait_until(lambda: count_sockets(site) == 0)
    camera.select_option(name)
    start(live, SOCKET)
    expect(live.get_by_role("alert")).to_have_count(0)
    stop(live)
    # Without the camera that was chosen, there is the default one.
    live.page.evaluate("""() => {
      const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices)
      navigator.mediaDevices.getUserMedia = (constraints) =>
        constraints.video.deviceId ? Promise.reject(new Error('it is gone')) : open(constraints)
      navigator.mediaDevices.enumerateDevices = () => Promise.resolve([])
      navigator.mediaDevices.dispatchEvent(new Event('devicechange'))
    }""")
    expect(camera.locator("option")).to_have_count(1)
    start(live, SOCKET)


def test_a_camera_that_is_denied_gets_a_sentence(playwright: Playwright, site: LiveSite) -> None:
    with bare(playwright, site.url, f"{GRANTED}=deny") as live:
        press(live, "Start")
        expect(live.get_by_role("alert")).to_contain_text(
            "The browser is not allowed to use the camera."
        )
        assert site.sessions.count == 0


def test_a_page_without_https_says_what_cameras_need(playwright: Playwright) -> None:
    with serving(allowed_hosts=["site.test"]) as site:
        url = site.url.replace("127.0.0.1", "site.test")
        with bare(playwright, url, GRANTED) as live:
            press(live, "Start")
            expect(live.get_by_role("alert")).to_contain_text("only on https pages")
