"""The tab "Jobs", and what tests do with it."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image, ImageDraw
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import opened
from tests.browser.site import Site

PICTURES = 20
"""Those of a folder."""


def opened_jobs(browser: Browser, url: str) -> Iterator[Page]:
    for page in opened(browser, url):
        page.get_by_role("tab", name="Jobs").click()
        yield page


def draw(number: int) -> Image.Image:
    picture = Image.new("RGB", (96, 72), (40, 90, 5 * number % 255))
    ImageDraw.Draw(picture).ellipse((10, 10, 50, 50), (230, 40, 40))
    return picture


def write(folder: Path, name: str, number: int = 0) -> Path:
    path = folder / name
    draw(number).save(path)
    return path


def drop(page: Page, *paths: Path) -> None:
    """Drop files and folders of the disk onto the page, as from another window."""
    session = page.context.new_cdp_session(page)
    box = page.locator(".drop").bounding_box()
    assert box is not None
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    place = {"x": box["x"] + 20, "y": box["y"] + 20}
    for event in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": event, **place, "data": data})


def submit(page: Page) -> None:
    page.locator(".jobs").get_by_role("button", name="Submit").click()


def submit_all(page: Page, *paths: Path) -> None:
    """Submit pictures, and wait until the queue has them."""
    drop(page, *paths)
    expect(page.get_by_text(re.compile(r"pictures? ready"))).to_be_visible()
    submit(page)
    expect(page.get_by_test_id("progress")).to_contain_text(
        f"{len(paths)} of {len(paths)} uploaded"
    )


def choose_task(page: Page, task: str) -> None:
    page.locator(".jobs").get_by_role("radio", name=task).check()


def states(page: Page, **counts: int) -> None:
    """Wait until so many jobs are in each state."""
    for state, count in counts.items():
        expect(page.locator(f".job[data-state={state}]")).to_have_count(count)


def act(page: Page, action: str) -> None:
    page.locator(".jobs-card, dialog").get_by_role("button", name=action, exact=True).click()


def download(page: Page, name: str) -> str:
    with page.expect_download() as waiting:
        page.get_by_role("button", name=f"Download {name}").click()
    return Path(waiting.value.path()).read_bytes().decode()


def wait_until(page: Page, holds: Callable[[], object]) -> None:
    """Wait, while routes are handled."""
    deadline = time.monotonic() + 15
    while not holds():
        assert time.monotonic() < deadline
        page.wait_for_timeout(50)


def submit_elsewhere(page: Page, site: Site, path: Path) -> None:
    data = base64.b64encode(path.read_bytes()).decode()
    body = {"job_type": "caption", "input": {"image": data}, "query": {"file": path.name}}
    assert page.request.post(f"{site.url}api/v1/jobs", data=body).ok
