"""Settings of an installed plugin appear in "Try" and "Live", with no change of the page."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, expect

from raylens.core.types import Location, Query
from raylens.realtime.plugins import load_registry
from tests.browser.conftest import opened
from tests.browser.live_page import frame_of, start, wait_until
from tests.browser.site import SCENE, serving
from tests.browser.test_try import choose_task, run, wait_for_picture

pytestmark = pytest.mark.browser

FOCUS = """
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
TINT = """
from typing import ClassVar
import pluggy
from pydantic import BaseModel, Field


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


class Plugin:
    @pluggy.HookimplMarker("scope")
    def register_pipelines(self, register):
        register(TintPipeline)


plugin = Plugin()
"""
SHAKY = """
from pathlib import Path
from typing import ClassVar
import pluggy
from pydantic import BaseModel


class ShakyConfig(BaseModel):
    pipeline_id: ClassVar[str] = "shaky"
    pipeline_name: ClassVar[str] = "Shaky"
    pipeline_description: ClassVar[str] = "Fails as long as there is a file."


class ShakyPipeline:
    get_config_class = classmethod(lambda cls: ShakyConfig)

    def __init__(self, **_):
        pass

    def __call__(self, video, **_):
        if Path(__file__).with_suffix(".fails").exists():
            raise ValueError("it fails")
        return {"video": video[0].float() / 255}


class Plugin:
    @pluggy.HookimplMarker("scope")
    def register_pipelines(self, register):
        register(ShakyPipeline)


plugin = Plugin()
"""
PLUGINS = {"focus": FOCUS, "tint": TINT, "shaky": SHAKY}


def install(folder: Path, name: str, source: str) -> None:
    """Write a plugin: a module, and what a wheel's installation says about it."""
    (folder / f"scope_{name}.py").write_text(source)
    about = folder / f"scope_{name}-0.1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: scope-{name}\nVersion: 0.1.0\n")
    (about / "entry_points.txt").write_text(f"[scope]\n{name} = scope_{name}:plugin\n")


@pytest.fixture
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install the plugins."""
    for name, source in PLUGINS.items():
        install(tmp_path, name, source)
    monkeypatch.syspath_prepend(tmp_path)
    load_registry.cache_clear()
    yield
    load_registry.cache_clear()
    for name in PLUGINS:
        sys.modules.pop(f"scope_{name}", None)


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


@pytest.mark.usefixtures("_installed")
def test_the_pipeline_of_a_plugin_runs_on_live_video(live: Locator) -> None:
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


@pytest.mark.usefixtures("_installed")
def test_the_error_of_a_plugin_goes_once_it_works_again(live: Locator, tmp_path: Path) -> None:
    trouble = tmp_path / "scope_shaky.fails"
    trouble.touch()
    live.get_by_label("Pipeline").select_option("Shaky")
    start(live)
    expect(live.get_by_role("alert")).to_contain_text("An internal error.")
    trouble.unlink()
    expect(live.get_by_role("alert")).to_have_count(0)
