"""A setting of an installed plugin appears in "Try", with no change of the page."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from raylens.core.types import Location, Query
from raylens.realtime.plugins import load_registry
from tests.browser.conftest import opened
from tests.browser.site import serving
from tests.browser.test_try import choose_task, run, wait_for_picture

pytestmark = pytest.mark.browser

PLUGIN = """
from typing import ClassVar

import pluggy
from pydantic import BaseModel, Field


class FocusConfig(BaseModel):
    pipeline_id: ClassVar[str] = "focus"
    pipeline_name: ClassVar[str] = "Focus"
    pipeline_description: ClassVar[str] = "Asks about a part of the picture."
    pipeline_version: ClassVar[str] = "0.1.0"

    focus: str = Field("", max_length=80, description="What it is about: [[x, y]].",
        json_schema_extra={
            "ui": {"label": "Focus", "request": "spatial_refs", "features": ["query"]},
        })
    temperature: float = Field(0.9, json_schema_extra={"ui": {"request": "settings.temperature"}})
    strength: float = Field(0.5, json_schema_extra={"ui": {"label": "Strength"}})


class FocusPipeline:
    @classmethod
    def get_config_class(cls):
        return FocusConfig


class Plugin:
    @pluggy.HookimplMarker("scope")
    def register_pipelines(self, register):
        register(FocusPipeline)


plugin = Plugin()
"""


@pytest.fixture
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install the plugin: a module, and what a wheel's installation says about it."""
    (tmp_path / "scope_focus.py").write_text(PLUGIN)
    about = tmp_path / "scope_focus-0.1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: scope-focus\nVersion: 0.1.0\n")
    (about / "entry_points.txt").write_text("[scope]\nfocus = scope_focus:plugin\n")
    monkeypatch.syspath_prepend(tmp_path)
    load_registry.cache_clear()
    yield
    load_registry.cache_clear()
    sys.modules.pop("scope_focus", None)


@pytest.mark.usefixtures("_installed")
def test_a_setting_of_a_plugin_is_sent_with_the_request(browser: Browser) -> None:
    with serving() as site:
        for page in opened(browser, site.url):
            page.get_by_role("button", name="Shapes").click()
            wait_for_picture(page, "scene.png")
            page.get_by_text("More settings").click()
            expect(page.get_by_label("Temperature", exact=True)).to_have_count(1)
            expect(page.get_by_label("Focus")).to_have_count(0)
            choose_task(page, "Ask")
            expect(page.get_by_label("Strength")).to_have_count(0)
            page.get_by_label("Focus").fill("[[0.25, 0.5]]")
            expect(page.locator("#field-focus-hint")).to_have_text("What it is about: [[x, y]].")
            run(page)
            expect(page.locator(".figures")).to_contain_text("out")
        task = site.service.requests[-1].task
        assert isinstance(task, Query)
        assert task.spatial_refs == (Location(0.25, 0.5),)
