"""The tab "Jobs" while the server, the network or the key is not as it should be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import APIResponse, Browser, Page, Route, expect

from raylens.core.errors import ModelFailed
from raylens.core.keys import hash_key
from tests.browser.conftest import opened
from tests.browser.job_site import serving_jobs
from tests.browser.jobs_page import (
    act,
    drop,
    opened_jobs,
    states,
    submit,
    submit_all,
    submit_elsewhere,
    wait_until,
    write,
)
from tests.browser.site import CONFIG, Site, serving

pytestmark = pytest.mark.browser


def test_a_server_that_stops_and_is_back_loses_nothing(
    browser: Browser, tmp_path: Path, folder: Path
) -> None:
    with serving_jobs(tmp_path / "queue") as site:
        site.service.gate.clear()
        pages = opened_jobs(browser, site.url)
        page = next(pages)
        submit_all(page, *sorted((folder / "left").iterdir()))
        expect(page.locator(".job")).to_have_count(10)
    expect(page.get_by_text("Not connected")).to_be_visible()
    expect(
        page.get_by_text("The server does not answer. The list reconnects by itself.")
    ).to_be_visible()
    drop(page, folder / "right")
    expect(page.get_by_text("10 pictures ready")).to_be_visible()
    submit(page)
    expect(page.get_by_text("The upload continues by itself")).to_be_visible()
    with serving_jobs(tmp_path / "queue", site.port) as again:
        states(page, succeeded=20)
        expect(page.locator(".jobs").get_by_text("Live", exact=True)).to_be_visible()
        listed = page.request.get(f"{again.url}api/v1/jobs").json()["jobs"]
        assert len(listed) == 20
        assert {job["status"] for job in listed} == {"succeeded"}
    next(pages, None)


def test_a_full_queue_is_waited_for_and_no_job_is_made_twice(
    browser: Browser, tmp_path: Path, folder: Path
) -> None:
    with serving_jobs(tmp_path / "queue", jobs={"capacity": 2}) as site:
        site.service.gate.clear()
        for page in opened_jobs(browser, site.url):
            drop(page, folder)
            expect(page.get_by_text("20 pictures ready")).to_be_visible()
            submit(page)
            expect(page.get_by_text("2 jobs are queued; the limit is 2")).to_be_visible()
            page.get_by_role("button", name="Pause upload").click()
            expect(page.get_by_role("button", name="Resume upload")).to_be_visible()
            site.service.gate.set()
            states(page, succeeded=4)
            page.get_by_role("button", name="Resume upload").click()
            states(page, succeeded=20)
        assert len(site.service.requests) == 20


def test_a_lost_answer_makes_no_second_job(page: Page, site: Site, tmp_path: Path) -> None:
    lost: list[str] = []

    def lose_first(route: Route) -> None:
        if route.request.method == "POST" and not lost:
            lost.append(route.fetch().json()["id"])
            route.abort()
        else:
            route.continue_()

    page.route("**/api/v1/jobs", lose_first)
    drop(page, write(tmp_path, "one.png"))
    expect(page.get_by_text("1 picture ready")).to_be_visible()
    submit(page)
    expect(page.get_by_test_id("progress")).to_have_text("1 of 1 uploaded · 1 succeeded")
    listed = page.request.get(f"{site.url}api/v1/jobs").json()["jobs"]
    assert [job["id"] for job in listed] == lost


def test_a_stopped_upload_can_be_submitted_again(
    browser: Browser, tmp_path: Path, folder: Path
) -> None:
    with serving_jobs(tmp_path / "queue", jobs={"capacity": 1}) as site:
        site.service.gate.clear()
        for page in opened_jobs(browser, site.url):
            drop(page, folder / "left")
            expect(page.get_by_text("10 pictures ready")).to_be_visible()
            submit(page)
            expect(page.get_by_text("The upload continues by itself")).to_be_visible()
            page.get_by_role("button", name="Stop upload").click()
            expect(page.get_by_text("pictures ready")).to_be_visible()
            site.service.gate.set()
            submit(page)
            states(page, succeeded=10)


def test_a_missing_key_is_asked_for_and_shows_its_own_jobs_only(
    browser: Browser, tmp_path: Path
) -> None:
    keys = [{"name": name, "hash": hash_key(f"rl-{name}")} for name in ("ann", "bob")]
    with serving_jobs(tmp_path / "queue", auth={"keys": keys}) as site:
        for page in opened_jobs(browser, site.url):
            jobs = page.locator(".jobs")
            expect(jobs.get_by_role("alert")).to_contain_text("This server needs an API key.")
            jobs.get_by_role("button", name="Enter key").click()
            page.get_by_label("API key").fill("rl-ann")
            page.get_by_label("API key").press("Enter")
            expect(page.locator(".jobs").get_by_text("Live", exact=True)).to_be_visible()
            submit_all(page, write(tmp_path, "one.png"))
            states(page, succeeded=1)
            page.get_by_text("Key set").click()
            page.get_by_label("API key").fill("rl-bob")
            page.get_by_label("API key").press("Enter")
            expect(page.locator(".job")).to_have_count(0)
            expect(page.get_by_text("No jobs yet.")).to_be_visible()
            expect(page.get_by_test_id("progress")).to_contain_text("1 not in the list")
            expect(page.get_by_role("progressbar", name="Progress")).to_have_js_property("value", 0)


def test_a_server_without_a_queue_says_so(browser: Browser) -> None:
    with serving() as site:
        for page in opened_jobs(browser, site.url):
            expect(page.get_by_text("This server has no job queue")).to_be_visible()


def test_a_list_that_comes_late_loses_no_job(browser: Browser, site: Site, tmp_path: Path) -> None:
    held: list[tuple[Route, APIResponse]] = []
    for page in opened(browser, site.url):
        submit_elsewhere(page, site, write(tmp_path, "old.png"))
        page.route("**/api/v1/jobs?limit=*", lambda route: held.append((route, route.fetch())))
        page.get_by_role("tab", name="Jobs").click()
        wait_until(page, lambda: held)
        submit_elsewhere(page, site, write(tmp_path, "new.png", 1))
        expect(page.get_by_role("button", name="Open new.png")).to_be_visible()
        for route, answer in held:
            route.fulfill(response=answer)
        expect(page.get_by_role("button", name="Open old.png")).to_be_visible()
        expect(page.get_by_role("button", name="Open new.png")).to_be_visible()
        assert len(held) == 1


def test_a_list_that_fails_is_shown_and_loaded_again(
    browser: Browser, site: Site, tmp_path: Path
) -> None:
    for page in opened(browser, site.url):
        submit_elsewhere(page, site, write(tmp_path, "one.png"))
        lists = "**/api/v1/jobs?limit=*"
        page.route(lists, lambda route: route.fulfill(status=500, json={"error": "disk is gone"}))
        page.get_by_role("tab", name="Jobs").click()
        jobs = page.locator(".jobs")
        expect(jobs.get_by_role("alert")).to_contain_text("Disk is gone.")
        expect(jobs.get_by_text("Not connected")).to_be_visible()
        page.unroute(lists)
        states(page, succeeded=1)
        expect(jobs.get_by_text("Live", exact=True)).to_be_visible()
        expect(jobs.get_by_role("alert")).to_have_count(0)


def test_older_jobs_are_loaded_and_what_fails_is_told(
    browser: Browser, site: Site, tmp_path: Path
) -> None:
    held: list[Route] = []

    def cut(route: Route) -> None:
        """Answer with a full page of copies of the newest job; hold what asks for older ones."""
        if "cursor=" in route.request.url:
            held.append(route)
            return
        newest = route.fetch().json()["jobs"][0]
        ended = {**newest, "status": "succeeded"}
        copies = [{**ended, "id": f"{newest['id']}-{number}"} for number in range(99)]
        route.fulfill(json={"jobs": [newest, *copies], "next_cursor": "older"})

    def answer(status: int) -> None:
        wait_until(page, lambda: held)
        whole = page.request.get(f"{site.url}api/v1/jobs").json()
        held.pop().fulfill(
            status=status, json=whole if status == 200 else {"error": "disk is gone"}
        )

    for page in opened(browser, site.url):
        submit_elsewhere(page, site, write(tmp_path, "old.png"))
        submit_elsewhere(page, site, write(tmp_path, "new.png", 1))
        page.route("**/api/v1/jobs?limit=*", cut)
        page.get_by_role("tab", name="Jobs").click()
        expect(page.get_by_text("100 jobs", exact=True)).to_be_visible()
        pager = page.get_by_role("navigation", name="Pages")
        pager.get_by_role("button", name="Load older jobs").click()
        expect(pager.get_by_role("button", name="Loading older jobs…")).to_be_disabled()
        answer(500)
        expect(pager.get_by_role("alert")).to_contain_text("Disk is gone.")
        pager.get_by_role("button", name="Load older jobs").click()
        expect(pager.get_by_role("alert")).to_have_count(0)
        answer(503)
        expect(pager.get_by_role("alert")).to_contain_text("Disk is gone. Trying again…")
        answer(200)
        expect(page.get_by_text("101 jobs", exact=True)).to_be_visible()
        expect(pager.get_by_role("button", name="older")).to_have_count(0)


def test_a_pause_that_ends_in_a_hidden_window_ends_there_too(page: Page, tmp_path: Path) -> None:
    held: list[Route] = []

    def answer(route: Route) -> None:
        if route.request.method != "POST":
            route.continue_()
        elif not held:
            held.append(route)
            route.fulfill(status=503, json={"error": "busy"}, headers={"Retry-After": "1"})
        else:
            held.append(route)

    page.route("**/api/v1/jobs", answer)
    drop(page, write(tmp_path, "one.png"))
    expect(page.get_by_text("1 picture ready")).to_be_visible()
    submit(page)
    expect(page.get_by_text("The upload continues by itself")).to_be_visible()
    # A hidden window gets no frames, but its timers run.
    page.evaluate("""() => {
      const frames = window.requestAnimationFrame
      window.waiting = []
      window.requestAnimationFrame = (callback) => window.waiting.push(callback)
      window.show = () => {
        window.requestAnimationFrame = frames
        for (const callback of window.waiting) frames(callback)
      }
    }""")
    wait_until(page, lambda: len(held) == 2)
    page.wait_for_timeout(1100)  # a tick of the clock
    page.evaluate("window.show()")
    held.pop().continue_()
    states(page, succeeded=1)
    expect(page.get_by_text("The upload continues by itself")).to_have_count(0)


def test_a_page_of_another_origin_is_told_so_at_once(page: Page, tmp_path: Path) -> None:
    detail = "Origin: web pages from 'http://proxy.test' may not use this server"
    page.route(
        "**/api/v1/jobs",
        lambda route: (
            route.fulfill(status=403, json={"detail": detail})
            if route.request.method == "POST"
            else route.continue_()
        ),
    )
    drop(page, write(tmp_path, "one.png"))
    expect(page.get_by_text("1 picture ready")).to_be_visible()
    submit(page)
    page.get_by_text("1 file was refused").click()
    expect(page.locator(".refusals li")).to_contain_text(
        f"The server refused this request. {detail}."
    )
    expect(page.get_by_role("button", name="Enter key")).to_have_count(0)


def test_a_webhook_that_is_refused_is_told_once_at_its_field_and_no_picture_is_lost(
    page: Page, site: Site, folder: Path
) -> None:
    jobs = page.locator(".jobs")
    address = jobs.get_by_label("Webhook URL")
    drop(page, folder)
    expect(page.get_by_text("20 pictures ready")).to_be_visible()
    jobs.get_by_text("Webhook and priority").click()
    address.fill("http://10.0.0.1/hook")
    jobs.get_by_text("Webhook and priority").click()
    submit(page)
    expect(jobs.get_by_role("alert")).to_have_text("Webhook URL: 10.0.0.1 is not a public address.")
    expect(address).to_be_focused()
    expect(address).to_have_accessible_description(re.compile("10.0.0.1 is not a public address"))
    expect(page.get_by_text("refused")).to_have_count(0)
    expect(page.get_by_text("20 pictures ready")).to_be_visible()
    expect(page.get_by_role("progressbar")).to_have_count(0)
    address.fill("")
    expect(jobs.get_by_role("alert")).to_have_count(0)
    submit(page)
    states(page, succeeded=20)


def test_a_webhook_secret_without_a_url_is_told_at_its_field(
    page: Page, site: Site, tmp_path: Path
) -> None:
    jobs = page.locator(".jobs")
    secret = jobs.get_by_label("Webhook secret")
    drop(page, write(tmp_path, "one.png"))
    expect(page.get_by_text("1 picture ready")).to_be_visible()
    jobs.get_by_text("Webhook and priority").click()
    secret.fill("whsec_short")
    submit(page)
    expect(jobs.get_by_role("alert")).to_contain_text(
        "Webhook secret: It signs requests to a webhook, and there is none."
    )
    expect(secret).to_be_focused()
    jobs.get_by_label("Webhook URL").fill(f"{site.url}hook")
    submit(page)
    expect(jobs.get_by_role("alert")).to_contain_text("Webhook secret: Expected whsec_ followed by")
    secret.fill("")
    submit(page)
    states(page, succeeded=1)


def test_a_setting_that_is_refused_for_all_pictures_is_told_once(page: Page, folder: Path) -> None:
    refusal = {"status": 422, "json": {"detail": "input.recipe: unknown recipe 'mine'"}}
    page.route(
        "**/api/v1/jobs",
        lambda route: (
            route.fulfill(**refusal) if route.request.method == "POST" else route.continue_()
        ),
    )
    jobs = page.locator(".jobs")
    drop(page, folder)
    expect(page.get_by_text("20 pictures ready")).to_be_visible()
    jobs.get_by_text("More settings").click()
    jobs.get_by_label("Recipe").select_option("mine")
    submit(page)
    alert = jobs.get_by_role("alert")
    expect(alert).to_contain_text("Input.recipe: unknown recipe 'mine'.")
    expect(page.get_by_text("20 pictures ready")).to_be_visible()
    page.unroute("**/api/v1/jobs")
    submit(page)
    expect(alert).to_have_count(0)
    states(page, succeeded=20)


def test_a_full_disk_is_told_and_waited_for(browser: Browser, tmp_path: Path) -> None:
    with serving_jobs(tmp_path / "queue", jobs={"min_free_bytes": 10**18}) as site:
        for page in opened_jobs(browser, site.url):
            drop(page, write(tmp_path, "one.png"))
            expect(page.get_by_text("1 picture ready")).to_be_visible()
            submit(page)
            note = page.locator(".uploads .notice")
            expect(note).to_contain_text("The server has no room left. The disk of the job queue")
            expect(note).to_contain_text("Remove jobs that have ended, or free space")
            expect(note).to_contain_text("The upload continues by itself in")


def test_a_request_that_is_too_large_says_what_to_do(browser: Browser, tmp_path: Path) -> None:
    limits = {**CONFIG["limits"], "max_body_bytes": 400}
    with serving_jobs(tmp_path / "queue", limits=limits) as site:
        for page in opened_jobs(browser, site.url):
            drop(page, write(tmp_path, "one.png"))
            expect(page.get_by_text("1 picture ready")).to_be_visible()
            submit(page)
            page.get_by_text("1 file was refused").click()
            refusal = page.locator(".refusals li")
            expect(refusal).to_contain_text("The request is too large for this server.")
            expect(refusal).to_contain_text("the limit is 400 bytes. Use a smaller file")


def test_a_key_that_may_not_use_jobs_can_be_replaced(browser: Browser, tmp_path: Path) -> None:
    keys = [
        {"name": "ann", "hash": hash_key("rl-ann"), "scopes": ["infer"]},
        {"name": "bob", "hash": hash_key("rl-bob")},
    ]
    with serving_jobs(tmp_path / "queue", auth={"keys": keys}) as site:
        for page in opened_jobs(browser, site.url):
            jobs = page.locator(".jobs")
            for key in ("rl-wrong", "rl-ann"):
                jobs.get_by_role("button", name="Enter key").first.click()
                page.get_by_label("API key").fill(key)
                page.get_by_label("API key").press("Enter")
                refusal = "does not know this API key" if key == "rl-wrong" else "the scope jobs"
                expect(page.locator(".jobs-card").get_by_role("alert")).to_contain_text(refusal)
            drop(page, write(tmp_path, "one.png"))
            expect(page.get_by_text("1 picture ready")).to_be_visible()
            submit(page)
            hold = page.locator(".uploads").get_by_role("alert")
            expect(hold).to_contain_text("The server does not allow this. The key 'ann' may not")
            hold.get_by_role("button", name="Enter key").click()
            page.get_by_label("API key").fill("rl-bob")
            page.get_by_label("API key").press("Enter")
            states(page, succeeded=1)


def test_an_upload_is_as_fast_as_before_once_trouble_has_passed(page: Page, folder: Path) -> None:
    refused: list[Route] = []
    held: list[Route] = []

    def hold(route: Route) -> None:
        if route.request.method != "POST":
            route.continue_()
        elif len(refused) < 3:
            refused.append(route)
            route.fulfill(status=503, json={"error": "busy"})
        else:
            held.append(route)

    page.route("**/api/v1/jobs", hold)
    drop(page, folder)
    expect(page.get_by_text("20 pictures ready")).to_be_visible()
    submit(page)
    wait_until(page, lambda: held)
    assert len(held) == 1
    held.pop().continue_()
    wait_until(page, lambda: len(held) == 2)
    held.pop().continue_()
    wait_until(page, lambda: len(held) == 3)


def test_a_change_that_is_refused_or_waits_says_so_in_the_dialog(
    page: Page, site: Site, tmp_path: Path
) -> None:
    site.service.error = ModelFailed("out of memory")
    submit_all(page, write(tmp_path, "one.png"))
    states(page, failed=1)
    page.get_by_role("button", name="Open one.png").click()
    dialog = page.get_by_role("dialog")
    answer = {"status": 409, "json": {"error": "the job is locked"}}
    page.route(
        "**/api/v1/jobs/*",
        lambda route: (
            route.continue_() if route.request.method == "GET" else route.fulfill(**answer)
        ),
    )
    act(page, "Retry")
    refusal = dialog.get_by_role("alert").filter(has_text="The job is locked.")
    expect(refusal).to_be_visible()
    answer["status"] = 503
    act(page, "Retry")
    expect(dialog.get_by_text("The change continues by itself.")).to_be_visible()
    expect(refusal).to_have_count(0)
    act(page, "Stop")
    expect(dialog.get_by_role("button", name="Retry")).to_be_enabled()


def test_a_picture_that_could_not_be_loaded_is_loaded_later(
    browser: Browser, site: Site, tmp_path: Path
) -> None:
    statuses = [503, 401]

    def fail(route: Route) -> None:
        if statuses:
            route.fulfill(status=statuses.pop(0), json={"error": "not now"})
        else:
            route.continue_()

    for page in opened(browser, site.url):
        submit_elsewhere(page, site, write(tmp_path, "one.png"))
        page.route("**/pictures/*", fail)
        page.get_by_role("tab", name="Jobs").click()
        wait_until(page, lambda: not statuses)
        expect(page.locator(".job .thumb img")).to_have_count(0)
        page.get_by_role("button", name="Open one.png").click()
        expect(page.get_by_role("dialog").locator(".frame img")).to_be_visible()
        page.unroute("**/pictures/*", fail)
        page.get_by_role("button", name="Close").click()
        thumbnail = page.locator(".job .thumb img")
        assert thumbnail.evaluate("(image) => image.decode().then(() => image.naturalWidth)") == 96
