"""The watches below the jobs."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.jobs_page import wait_until

pytestmark = pytest.mark.browser


def test_the_watches_are_listed_and_stopped(page: Page) -> None:
    event = {"type": "started", "subject": "person"}
    gate: dict[str, Any] = {
        "id": "w1",
        "source": "rtsp://gate",
        "status": "running",
        "connection": {"status": "lost", "problem": "no frame for 10 s"},
        "recent_events": [{"at": "2026-01-02T03:04:05Z", "event": event}],
    }
    door: dict[str, Any] = {
        "id": "w2",
        "source": "rtsp://door",
        "status": "failed",
        "connection": None,
        "error": {"message": "the password is wrong"},
        "recent_events": [],
    }
    stops = [409, 200]

    def stop(route: Route) -> None:
        status = stops.pop(0)
        gate["status"] = "running" if status == 409 else "canceled"
        route.fulfill(status=status, json={"error": "the watch is locked"})

    page.route("**/api/v1/watches?*", lambda route: route.fulfill(json={"watches": [gate, door]}))
    page.route("**/api/v1/watches/w1", stop)
    page.reload()
    card = page.get_by_role("region", name="Watches").first
    row = card.get_by_role("row", name="rtsp://gate")
    expect(row).to_contain_text("Running")
    expect(row).to_contain_text("Lost: no frame for 10 s")
    expect(row).to_contain_text("“person” started")
    other = card.get_by_role("row", name="rtsp://door")
    expect(other).to_contain_text("The password is wrong.")
    expect(other.get_by_role("button")).to_have_count(0)
    row.get_by_role("button", name="Stop the watch of rtsp://gate").click()
    expect(card.get_by_role("alert")).to_contain_text("The watch is locked.")
    row.get_by_role("button", name="Stop the watch of rtsp://gate").click()
    expect(card.get_by_role("alert")).to_have_count(0)
    expect(row).to_contain_text("Canceled")
    expect(row.get_by_role("button")).to_have_count(0)


def test_the_watches_stay_if_the_server_is_away_for_a_moment(page: Page) -> None:
    watch = {"id": "w1", "source": "rtsp://gate", "status": "running", "recent_events": []}
    statuses = [200, 503, 200, 404]
    seen: list[str] = []

    def answer(route: Route) -> None:
        seen.append(route.request.method)
        status = statuses[min(len(seen), len(statuses)) - 1]
        route.fulfill(status=status, json={"watches": [watch]} if status == 200 else {})

    page.route("**/api/v1/watches*", answer)
    page.reload()
    stop = page.get_by_role("button", name="Stop the watch of rtsp://gate")
    expect(stop).to_be_visible()
    wait_until(page, lambda: len(seen) >= 2)
    expect(stop).to_be_visible()
    wait_until(page, lambda: len(seen) >= 4)
    expect(stop).to_have_count(0)
