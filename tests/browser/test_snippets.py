"""The code that the page offers for a request works when it is pasted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from raylens.core.keys import hash_key
from raylens.core.types import Chat, Detect, Query, TextPart
from tests.browser.conftest import opened
from tests.browser.site import CAPTION, SCENE, Site, serving
from tests.browser.test_try import choose_task, give, run, wait_for_picture

pytestmark = pytest.mark.browser

LANGUAGES = {
    "curl": ["bash", "-e"],
    "Python, moondream": [sys.executable],
    "Python, openai": [sys.executable],
    "JavaScript": ["node", "--input-type=module"],
}
QUESTION = """What's "red" & 'round', $HOME \\ or @here; é?"""


def copy(page: Page, language: str) -> str:
    """Return a snippet, copied from the page."""
    page.get_by_role("tab", name="Code").click()
    page.get_by_role("radio", name=language).check()
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    return str(page.evaluate("navigator.clipboard.readText()"))


def execute(language: str, code: str, folder: Path, key: str = "") -> str:
    command = LANGUAGES[language]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is missing")
    environment = {**os.environ, "RAYLENS_API_KEY": key}
    result = subprocess.run(
        command, input=code, cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, f"{code}\n{result.stderr}"
    return result.stdout


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_caption_of_an_example(page: Page, site: Site, language: str, tmp_path: Path) -> None:
    page.get_by_role("button", name="Shapes").click()
    wait_for_picture(page, "scene.png")
    page.get_by_text("More settings").click()
    page.get_by_label("Caption length").select_option("short")
    page.get_by_label("Temperature", exact=True).fill("0.7")
    run(page)
    expect(page.get_by_test_id("answer")).to_have_text(CAPTION)
    output = execute(language, copy(page, language), tmp_path)
    assert CAPTION in output
    asked, again = site.service.requests
    assert again.sampling.temperature == pytest.approx(0.7)
    if not isinstance(again.task, Chat):
        assert again.task == asked.task
    if language != "Python, moondream":  # which encodes it anew
        assert site.service.pictures[1] == SCENE.read_bytes()


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_question_about_a_file_with_awkward_characters(
    page: Page, site: Site, language: str, tmp_path: Path
) -> None:
    name = """it's "my" scene, é.png"""
    (tmp_path / name).write_bytes(SCENE.read_bytes())
    give(page, name, SCENE.read_bytes())
    expect(page.locator(".about")).to_contain_text(name)
    choose_task(page, "Ask")
    page.get_by_label("Question").fill(QUESTION)
    run(page)
    expect(page.get_by_test_id("answer")).to_have_text(CAPTION)
    code = copy(page, language)
    expect(page.get_by_text(f"Run it in the folder that contains {name}.")).to_be_visible()
    assert CAPTION in execute(language, code, tmp_path)
    again = site.service.requests[1].task
    if isinstance(again, Chat):
        assert TextPart(QUESTION) in again.messages[0].parts
    else:
        assert again == Query(QUESTION)


@pytest.mark.parametrize("language", LANGUAGES)
def test_boxes_with_a_key(browser: Browser, language: str, tmp_path: Path) -> None:
    auth = {"keys": [{"name": "me", "hash": hash_key("rl-mine")}]}
    with serving(auth=auth) as site:
        for page in opened(browser, site.url):
            page.get_by_role("button", name="Enter key").click()
            page.get_by_label("API key").fill("rl-mine")
            page.get_by_label("API key").press("Enter")
            expect(page.get_by_role("alert")).to_have_count(0)
            page.get_by_role("button", name="Shapes").click()
            wait_for_picture(page, "scene.png")
            choose_task(page, "Detect")
            page.get_by_text("More settings").click()
            page.get_by_label("Max objects, value").fill("7")
            page.get_by_label("Max objects, value").blur()
            run(page)
            expect(page.get_by_test_id("answer")).to_contain_text("2 matches")
            output = execute(language, copy(page, language), tmp_path, "rl-mine")
            assert "x_min" in output
        assert [request.task for request in site.service.requests] == [Detect("circle", 7)] * 2


def test_the_request_as_json_can_be_sent(page: Page, site: Site) -> None:
    page.get_by_role("button", name="Shapes").click()
    wait_for_picture(page, "scene.png")
    run(page)
    expect(page.get_by_test_id("answer")).to_have_text(CAPTION)
    page.get_by_role("tab", name="JSON").click()
    page.get_by_role("button", name="Copy").first.click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    body = json.loads(page.evaluate("navigator.clipboard.readText()"))
    response = page.request.post(f"{site.url}v1/caption", data=body)
    assert response.ok
    assert site.service.pictures == [SCENE.read_bytes()] * 2
