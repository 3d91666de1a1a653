"""The tab "Jobs", used as a person does, over a real queue."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import Browser, Page, expect

from raylens.core.errors import ModelFailed
from raylens.core.keys import hash_key
from tests.browser.conftest import opened
from tests.browser.job_site import serving_jobs
from tests.browser.site import CAPTION, Site
from tests.receiver import Receiver

pytestmark = pytest.mark.browser

PICTURES = 20


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with serving_jobs(tmp_path / "queue") as site:
        yield site


@pytest.fixture
def page(browser: Browser, site: Site) -> Iterator[Page]:
    yield from opened(browser, f"{site.url}#jobs")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures in two folders."""
    root = tmp_path / "pictures"
    for number in range(PICTURES):
        path = root / ("left" if number % 2 else "right") / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(number).save(path)
    return root


def draw(number: int) -> Image.Image:
    picture = Image.new("RGB", (96, 72), (40, 90, 5 * number % 255))
    ImageDraw.Draw(picture).ellipse((10, 10, 50, 50), (230, 40, 40))
    return picture


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


def choose_task(page: Page, task: str) -> None:
    page.locator(".jobs").get_by_role("radio", name=task).check()


def test_a_dropped_folder_is_captioned_to_the_end(page: Page, site: Site, folder: Path) -> None:
    drop(page, folder)
    expect(page.get_by_text("20 pictures ready")).to_be_visible()
    submit(page)
    expect(page.get_by_test_id("progress")).to_have_text("20 of 20 uploaded · 20 succeeded")
    cards = page.locator(".job")
    expect(cards).to_have_count(PICTURES)
    expect(page.locator(".job[data-state=succeeded] .job-answer", has_text=CAPTION)).to_have_count(
        PICTURES
    )
    names = {name.strip() for name in page.locator(".job-name").all_inner_texts()}
    assert names == {f"{number:02}.png" for number in range(PICTURES)}
    expect(page.locator(".job .thumb img")).to_have_count(PICTURES)
    assert len(site.service.requests) == PICTURES
