"""A server with a job queue, and the tab "Jobs" opened."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from tests.browser.job_site import serving_jobs
from tests.browser.jobs_page import PICTURES, draw, opened_jobs
from tests.browser.site import Site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with serving_jobs(tmp_path / "queue") as site:
        yield site


@pytest.fixture
def page(browser: Browser, site: Site) -> Iterator[Page]:
    yield from opened_jobs(browser, site.url)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures in two folders."""
    root = tmp_path / "pictures"
    for number in range(PICTURES):
        path = root / ("left" if number % 2 else "right") / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(number).save(path)
    return root
