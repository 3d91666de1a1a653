"""The tab "Chat", used as a person does."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from raylens.core.errors import ModelFailed, Overloaded
from raylens.core.keys import hash_key
from raylens.core.types import Chat, ImagePart, Role, TextPart, VideoPart
from tests.browser.conftest import opened
from tests.browser.site import CAPTION, CONFIG, ROOT, SCENE, Site, serving
from tests.browser.test_try import draw

pytestmark = pytest.mark.browser

CLIP = ROOT / "docs" / "clip.mp4"
WAIT_MS = 15_000


def open_chat(page: Page) -> None:
    page.get_by_role("tab", name="Chat").first.click()
    message(page).wait_for()


def message(page: Page) -> Locator:
    return page.get_by_role("textbox", name="Message", exact=True)


def answers(page: Page) -> Locator:
    return page.locator(".log").get_by_test_id("answer")


def attach(page: Page, *files: Path | dict[str, Any]) -> None:
    page.locator(".composer input[type=file]").set_input_files(list(files))  # type: ignore[arg-type]


def setting(page: Page, label: str) -> Locator:
    return page.locator(".chat .settings").get_by_label(label)


def attached(page: Page) -> Locator:
    return page.locator(".composer .thumbnails li")


def say(page: Page, text: str) -> None:
    message(page).fill(text)
    message(page).press("Enter")


def wait_until_done(page: Page) -> None:
    page.get_by_role("button", name="Send").wait_for()
    expect(page.locator(".log")).to_have_attribute("aria-busy", "false")


def transfer(page: Page, event: str, files: dict[str, bytes]) -> None:
    """Drop or paste files onto the message."""
    script = """([event, files]) => {
      const transfer = new DataTransfer()
      for (const [name, data] of Object.entries(files)) {
        const bytes = Uint8Array.from(atob(data), (char) => char.charCodeAt(0))
        transfer.items.add(new File([bytes], name))
      }
      const [type, field] = event === 'paste'
        ? [ClipboardEvent, 'clipboardData'] : [DragEvent, 'dataTransfer']
      document.querySelector('#chat-text').dispatchEvent(
        new type(event, { [field]: transfer, bubbles: true, cancelable: true }))
    }"""
    encoded = {name: base64.b64encode(data).decode() for name, data in files.items()}
    page.evaluate(script, [event, encoded])


def chat_of(site: Site, index: int = -1) -> Chat:
    task = site.service.requests[index].task
    assert isinstance(task, Chat)
    return task


def texts_of(chat: Chat) -> list[tuple[Role, str]]:
    return [
        (turn.role, "".join(part.text for part in turn.parts if isinstance(part, TextPart)))
        for turn in chat.messages
    ]


def test_an_answer_appears_token_by_token_with_its_usage(page: Page, site: Site) -> None:
    open_chat(page)
    site.service.gate.clear()
    say(page, "Hello?")
    expect(answers(page)).to_have_text("a")
    expect(page.locator(".log")).to_have_attribute("aria-busy", "true")
    site.service.gate.set()
    expect(answers(page)).to_have_text(CAPTION)
    line = page.locator(".figures-line")
    for part in ("smolvlm", "74 in, 10 out", "first token", "total"):
        expect(line).to_contain_text(part)
    assert texts_of(chat_of(site)) == [(Role.USER, "Hello?")]
    expect(message(page)).to_have_value("")
    expect(message(page)).to_be_focused()


def test_a_server_that_is_away_is_told_at_the_message_and_waited_for(browser: Browser) -> None:
    with serving() as site:
        pages = opened(browser, site.url)
        page = next(pages)
        open_chat(page)
        expect(page.locator(".composer .notice")).to_have_count(0)
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")  # asks at once
    notice = page.locator(".composer .notice")
    expect(notice).to_contain_text("The server does not answer at the moment.")
    say(page, "Hello?")
    expect(page.locator(".log")).to_contain_text("The server does not answer. Trying again…")
    with serving(port=site.port):
        expect(answers(page)).to_have_text(CAPTION, timeout=WAIT_MS)
        expect(notice).to_have_count(0, timeout=WAIT_MS)
        next(pages, None)


def test_a_message_during_an_answer_stays_and_says_why(page: Page, site: Site) -> None:
    open_chat(page)
    site.service.gate.clear()
    say(page, "Hello?")
    expect(answers(page)).to_have_text("a")
    hint = page.get_by_text("Wait for the answer or stop it")
    message(page).press("Enter")
    expect(hint).to_have_count(0)
    say(page, "And then?")
    expect(hint).to_be_visible()
    expect(message(page)).to_have_value("And then?")
    site.service.gate.set()
    expect(hint).to_have_count(0)
    message(page).press("Enter")
    expect(answers(page)).to_have_text([CAPTION, CAPTION])


def test_the_settings_open_when_the_window_becomes_wide(page: Page) -> None:
    page.set_viewport_size({"width": 800, "height": 900})
    open_chat(page)
    expect(setting(page, "System prompt")).to_be_hidden()
    page.set_viewport_size({"width": 1280, "height": 900})
    expect(setting(page, "System prompt")).to_be_visible()


def test_several_pictures_and_a_video_go_with_a_message(page: Page, site: Site) -> None:
    open_chat(page)
    attach(page, SCENE, CLIP)
    expect(attached(page)).to_have_count(2)
    sides = "(image) => image.decode().then(() => [image.naturalWidth, image.naturalHeight])"
    for index in (0, 1):
        assert attached(page).nth(index).locator("img").evaluate(sides) == [120, 90]
    expect(attached(page).nth(1)).to_contain_text("2.1 s")
    transfer(page, "paste", {"pasted.png": draw(64, 48)})
    expect(attached(page)).to_have_count(3)
    transfer(page, "drop", {"one.png": draw(50, 40), "two.png": draw(40, 50)})
    expect(attached(page)).to_have_count(5)
    page.get_by_role("button", name="Remove one.png").click()
    expect(attached(page)).to_have_count(4)
    say(page, "What are they?")
    expect(answers(page)).to_have_text(CAPTION)
    parts = chat_of(site).messages[0].parts
    kinds = [type(part) for part in parts]
    assert kinds == [ImagePart, VideoPart, ImagePart, ImagePart, TextPart]
    expected = [SCENE.read_bytes(), CLIP.read_bytes(), draw(64, 48), draw(40, 50)]
    assert site.service.pictures == expected
    expect(attached(page)).to_have_count(0)
    expect(page.locator(".log .thumbnails li")).to_have_count(4)


def test_later_questions_carry_the_conversation(page: Page, site: Site) -> None:
    open_chat(page)
    setting(page, "System prompt").fill("Be brief.")
    attach(page, SCENE)
    expect(attached(page)).to_have_count(1)
    say(page, "First?")
    wait_until_done(page)
    say(page, "Second?")
    expect(answers(page)).to_have_text([CAPTION, CAPTION])
    wait_until_done(page)
    assert texts_of(chat_of(site)) == [
        (Role.SYSTEM, "Be brief."),
        (Role.USER, "First?"),
        (Role.ASSISTANT, f"{CAPTION} "),
        (Role.USER, "Second?"),
    ]
    assert site.service.pictures == [SCENE.read_bytes()] * 2
    page.get_by_role("button", name="New chat").click()
    expect(answers(page)).to_have_count(0)
    page.get_by_role("button", name="Back to the last chat").click()
    expect(answers(page)).to_have_text([CAPTION, CAPTION])
    page.get_by_role("button", name="New chat").click()
    expect(message(page)).to_be_focused()
    say(page, "Third?")
    expect(answers(page)).to_have_count(1)
    assert texts_of(chat_of(site)) == [(Role.SYSTEM, "Be brief."), (Role.USER, "Third?")]


def test_an_answer_is_no_longer_than_the_page_shows(page: Page, site: Site) -> None:
    open_chat(page)
    shown = setting(page, "Max tokens, value").input_value()
    say(page, "Hi")
    expect(answers(page)).to_have_text(CAPTION)
    assert site.service.requests[-1].sampling.max_tokens == int(shown)


def test_the_pocket_models_limits_are_told(page: Page) -> None:
    open_chat(page)
    page.locator("#chat-model").select_option("smolvlm")
    note = page.get_by_text("This is a pocket model")
    expect(note).to_have_count(0)
    page.locator("#chat-model").select_option("moondream")
    expect(note).to_be_visible()


def test_settings_go_with_the_request(page: Page, site: Site) -> None:
    open_chat(page)
    page.locator("#chat-model").select_option("moondream")
    setting(page, "Temperature, value").fill("0.4")
    setting(page, "Max tokens, value").fill("7")
    setting(page, "Max tokens, value").blur()
    say(page, "Hi")
    expect(answers(page)).to_have_text(CAPTION)
    request = site.service.requests[-1]
    assert request.model == "moondream"
    assert request.sampling.temperature == pytest.approx(0.4)
    assert request.sampling.max_tokens == 7


def test_shift_enter_starts_a_line_and_an_empty_message_is_not_sent(page: Page, site: Site) -> None:
    open_chat(page)
    message(page).press("Enter")
    message(page).type("one")
    message(page).press("Shift+Enter")
    message(page).type("two")
    expect(message(page)).to_have_value("one\ntwo")
    message(page).press("Enter")
    expect(answers(page)).to_have_text(CAPTION)
    assert [texts_of(request.task) for request in site.service.requests] == [  # type: ignore[arg-type]
        [(Role.USER, "one\ntwo")]
    ]


def test_text_is_never_markup(page: Page, site: Site) -> None:
    open_chat(page)
    site.service.words = ("<img src=x onerror=alert(1)>", "<b>bold</b>")
    say(page, "<i>lean</i>")
    expect(answers(page)).to_have_text("<img src=x onerror=alert(1)><b>bold</b>")
    expect(page.locator(".said")).to_have_text("<i>lean</i>")
    assert page.locator(".log b, .log i, .log img").count() == 0


def test_stop_keeps_what_has_come_and_the_next_question_follows_it(page: Page, site: Site) -> None:
    open_chat(page)
    site.service.gate.clear()
    say(page, "First?")
    expect(answers(page)).to_have_text("a")
    message(page).fill("typed meanwhile")
    message(page).press("Enter")  # waits for the answer's end
    expect(message(page)).to_have_value("typed meanwhile")
    site.service.ended.clear()
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("Stopped.")).to_be_visible()
    assert site.service.ended.wait(5)
    site.service.gate.set()
    message(page).press("Enter")
    expect(answers(page)).to_have_text(["a", CAPTION])
    assert texts_of(chat_of(site)) == [
        (Role.USER, "First?"),
        (Role.ASSISTANT, "a "),
        (Role.USER, "typed meanwhile"),
    ]


def test_an_answer_can_be_given_again(page: Page, site: Site) -> None:
    open_chat(page)
    say(page, "First?")
    wait_until_done(page)
    site.service.words = ("another", "answer")
    page.get_by_role("button", name="Answer again").click()
    expect(answers(page)).to_have_text(["anotheranswer"])
    assert texts_of(chat_of(site)) == [(Role.USER, "First?")]


def test_the_last_question_can_be_edited_and_a_draft_comes_back(page: Page, site: Site) -> None:
    open_chat(page)
    attach(page, SCENE)
    expect(attached(page)).to_have_count(1)
    say(page, "Frist?")
    wait_until_done(page)
    message(page).fill("half a draft")
    page.get_by_role("button", name="Edit").click()
    expect(message(page)).to_have_value("Frist?")
    expect(attached(page)).to_have_count(1)
    message(page).press("Escape")
    expect(message(page)).to_have_value("half a draft")
    page.get_by_role("button", name="Edit").click()
    say(page, "First?")
    expect(message(page)).to_have_value("half a draft")
    wait_until_done(page)
    expect(page.locator(".said")).to_have_text(["First?"])
    assert texts_of(chat_of(site)) == [(Role.USER, "First?")]
    assert site.service.pictures == [SCENE.read_bytes()] * 2


def test_an_answer_can_be_copied(page: Page) -> None:
    open_chat(page)
    say(page, "Hi")
    wait_until_done(page)
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()").strip() == CAPTION


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ModelFailed("out of memory"), "The server failed on this request. Out of memory."),
        (Overloaded("it is full", retry_after=3), "It is full. Try again in 3 seconds."),
    ],
)
def test_an_error_is_a_sentence_and_the_question_can_be_asked_again(
    page: Page, site: Site, error: Any, sentence: str
) -> None:
    open_chat(page)
    site.service.error = error
    say(page, "Important text")
    expect(page.get_by_role("alert")).to_contain_text(sentence)
    expect(page.locator(".said")).to_have_text("Important text")
    site.service.error = None
    page.get_by_role("button", name="Try again").click()
    expect(answers(page)).to_have_text(CAPTION)
    expect(page.get_by_role("alert")).to_have_count(0)


def test_a_question_that_failed_is_left_out_of_the_next(page: Page, site: Site) -> None:
    open_chat(page)
    site.service.error = ModelFailed("the video is damaged")
    say(page, "Bad?")
    expect(page.get_by_text("Later messages leave this question out")).to_be_visible()
    site.service.error = None
    say(page, "Good?")
    expect(answers(page)).to_have_text(CAPTION)
    assert texts_of(chat_of(site)) == [(Role.USER, "Good?")]


def test_an_error_in_the_middle_of_an_answer_keeps_its_beginning(page: Page, site: Site) -> None:
    open_chat(page)
    site.service.error = ModelFailed("out of memory")
    site.service.words_before_error = 3
    say(page, "Hi")
    expect(page.get_by_role("alert")).to_contain_text("The server failed on this request.")
    expect(answers(page)).to_have_text("a red circle,")


def test_an_answer_that_breaks_off_is_not_taken_for_a_complete_one(page: Page) -> None:
    chunk = {"choices": [{"delta": {"content": "half an"}, "finish_reason": None}]}
    body = f"data: {json.dumps(chunk)}\n\n"
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=body))
    open_chat(page)
    say(page, "Hi")
    expect(page.get_by_role("alert")).to_contain_text(
        "The connection ended before the answer was complete."
    )
    expect(answers(page)).to_have_text("half an")


def test_an_answer_that_reached_its_limit_says_so(page: Page) -> None:
    chunk = {"choices": [{"delta": {"content": "half an"}, "finish_reason": "length"}]}
    body = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=body))
    open_chat(page)
    say(page, "Hi")
    expect(page.get_by_text("it reached “Max tokens”")).to_be_visible()


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("notes.txt", b"hello", "notes.txt is neither a picture nor a video. Choose"),
        ("none.mp4", b"", "none.mp4 is empty. Choose another file."),
        ("cut.png", SCENE.read_bytes()[:500], "cut.png can’t be read: the file seems"),
        ("long.mp4", CLIP.read_bytes() + bytes(300_000), "takes videos up to 300 kB. Shorten it"),
    ],
)
def test_a_wrong_file_gets_a_sentence_and_the_others_are_taken(
    browser: Browser, name: str, content: bytes, sentence: str
) -> None:
    limits = {**CONFIG["limits"], "max_video_bytes": 300_000}
    with serving(limits=limits) as site:
        for page in opened(browser, site.url):
            open_chat(page)
            expect(page.locator("#chat-model option")).to_have_count(3)
            wrong = {"name": name, "mimeType": "", "buffer": content}
            message(page).fill("my text")
            attach(page, wrong, {"name": "ok.png", "mimeType": "", "buffer": draw(64, 48)})
            expect(page.get_by_role("alert")).to_contain_text(sentence)
            expect(attached(page)).to_have_count(1)
            expect(message(page)).to_have_value("my text")


def test_limits_of_the_server_are_told_before_anything_is_sent(browser: Browser) -> None:
    limits = {**CONFIG["limits"], "max_images": 2, "max_body_bytes": 400_000}
    with serving(limits=limits) as site:
        for page in opened(browser, site.url):
            open_chat(page)
            expect(page.locator("#chat-model option")).to_have_count(3)
            many = [
                {"name": f"{number}.png", "mimeType": "", "buffer": draw(9, 9 + number)}
                for number in range(3)
            ]
            attach(page, *many)
            problem = page.locator(".composer .notice")
            expect(problem).to_contain_text("This chat has 3 pictures; the server takes up to 2.")
            say(page, "Hi")
            expect(message(page)).to_have_value("Hi")
            page.get_by_role("button", name="Remove 0.png").click()
            expect(problem).to_have_count(0)
            page.get_by_role("button", name="Remove 1.png").click()
            page.get_by_role("button", name="Remove 2.png").click()
            large = [
                {"name": f"{number}.mp4", "mimeType": "", "buffer": CLIP.read_bytes() + bytes(size)}
                for number, size in enumerate((150_000, 150_000))
            ]
            attach(page, *large)
            expect(problem).to_contain_text("The pictures and videos of this chat are")
            assert not site.service.requests


def test_a_model_that_takes_one_picture_says_so_before_sending(page: Page, site: Site) -> None:
    open_chat(page)
    page.locator("#chat-model").select_option("moondream")
    settings = page.locator(".chat .settings")
    expect(settings).to_contain_text("Takes 1 picture in a chat. Sees 1 frame of each video.")
    attach(page, CLIP)
    expect(page.get_by_text("moondream reads no videos: it gets 1 frame")).to_be_visible()
    attach(page, SCENE)
    problem = page.locator(".composer .notice")
    expect(problem).to_contain_text("moondream takes 1 picture or video in a chat; this one has 2.")
    say(page, "Hi")
    assert not site.service.requests
    page.locator("#chat-model").select_option("smolvlm")
    expect(problem).to_have_count(0)
    message(page).press("Enter")
    expect(answers(page)).to_have_text(CAPTION)


def test_models_that_cannot_chat_are_not_offered(page: Page) -> None:
    def only_moondream(route: Any) -> None:
        health = route.fetch().json()
        health["models"]["smolvlm"]["tasks"] = ["caption"]
        route.fulfill(json=health)

    page.route("**/health", only_moondream)
    page.reload()
    open_chat(page)
    expect(page.locator("#chat-model option")).to_have_text(["Server’s choice", "moondream"])


def test_the_conversation_survives_other_tabs(page: Page) -> None:
    open_chat(page)
    say(page, "Hi")
    wait_until_done(page)
    message(page).fill("a draft")
    page.get_by_role("tab", name="Status").click()
    page.get_by_role("tab", name="Try").click()
    open_chat(page)
    expect(answers(page)).to_have_text(CAPTION)
    expect(message(page)).to_have_value("a draft")


def test_the_log_follows_the_answer_unless_its_reader_scrolls_up(page: Page, site: Site) -> None:
    open_chat(page)
    site.service.words = ("line\n",) * 60
    say(page, "Hi")
    wait_until_done(page)
    rest = "(log) => log.scrollHeight - log.scrollTop - log.clientHeight"
    log = page.locator(".log")
    assert log.evaluate(rest) <= 4
    site.service.gate.clear()
    say(page, "Again")
    expect(answers(page)).to_have_count(2)
    log.hover()
    page.mouse.wheel(0, -120)
    to_end = page.get_by_role("button", name="Go to the latest")
    expect(to_end).to_be_visible()
    site.service.gate.set()
    wait_until_done(page)
    assert log.evaluate(rest) > 100
    to_end.click()
    expect(to_end).to_have_count(0)
    assert log.evaluate(rest) <= 4


def test_a_complete_answer_is_announced_once(page: Page, site: Site) -> None:
    open_chat(page)
    site.service.gate.clear()
    say(page, "Hi")
    expect(answers(page)).to_have_text("a")
    status = page.locator(".log-frame > [role=status]")
    expect(status).to_have_text("Waiting for the answer.")
    expect(page.get_by_role("log")).to_have_attribute("aria-live", "off")
    site.service.gate.set()
    expect(status).to_have_text(f"Answer: {CAPTION}")


def test_a_chat_works_by_keyboard_alone(page: Page) -> None:
    page.get_by_role("tab", name="Try").focus()
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    message(page).wait_for()
    shapes = page.get_by_role("button", name="Shapes")
    shapes.focus()
    page.keyboard.press("Enter")
    expect(attached(page)).to_have_count(1)
    expect(message(page)).to_be_focused()
    page.keyboard.type("What is it?")
    page.keyboard.press("Enter")
    wait_until_done(page)
    page.keyboard.type("And again?")
    page.keyboard.press("Enter")
    expect(answers(page)).to_have_text([CAPTION, CAPTION])


def test_a_missing_key_is_asked_for_and_the_question_stays(browser: Browser) -> None:
    auth = {"keys": [{"name": "me", "hash": hash_key("rl-mine")}]}
    with serving(auth=auth) as site:
        for page in opened(browser, site.url):
            open_chat(page)
            say(page, "Hi")
            expect(page.locator(".log").get_by_role("alert")).to_contain_text("needs an API key")
            page.locator(".log").get_by_role("button", name="Enter key").click()
            page.get_by_label("API key").fill("rl-mine")
            page.get_by_label("API key").press("Enter")
            page.get_by_role("button", name="Try again").click()
            expect(answers(page)).to_have_text(CAPTION)


AWKWARD = """What's "red" & `round`, $HOME \\ or @here; é?\nTwo lines."""


@pytest.mark.parametrize(
    ("language", "command"),
    [("curl", ["bash", "-e"]), ("Python, openai", [sys.executable])],
)
def test_copied_code_sends_the_conversation(
    page: Page, site: Site, language: str, command: list[str], tmp_path: Path
) -> None:
    name = """it's "my" scene, é.png"""
    (tmp_path / name).write_bytes(draw(64, 48))
    (tmp_path / CLIP.name).write_bytes(CLIP.read_bytes())
    open_chat(page)
    setting(page, "Temperature, value").fill("0.7")
    setting(page, "Temperature, value").blur()
    setting(page, "Recipe").select_option("plain")
    page.get_by_role("button", name="Shapes").click()
    expect(attached(page)).to_have_count(1)
    attach(page, tmp_path / name, CLIP)
    expect(attached(page)).to_have_count(3)
    say(page, "First?")
    wait_until_done(page)
    say(page, AWKWARD)
    expect(answers(page)).to_have_count(2)
    wait_until_done(page)
    page.get_by_role("tab", name="Code").click()
    page.get_by_role("radio", name=language).check()
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    code = page.evaluate("navigator.clipboard.readText()")
    result = subprocess.run(
        command, input=code, cwd=tmp_path, env={**os.environ}, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert result.returncode == 0, f"{code}\n{result.stderr}"
    assert CAPTION in result.stdout
    asked, again = site.service.requests[-2:]
    assert again.task == asked.task
    assert again.sampling == asked.sampling
    assert again.recipe == asked.recipe
    pictures = site.service.pictures
    assert pictures[-3:] == pictures[-6:-3] == [SCENE.read_bytes(), draw(64, 48), CLIP.read_bytes()]


def test_the_request_as_json_can_be_sent(page: Page, site: Site) -> None:
    open_chat(page)
    attach(page, CLIP)
    expect(attached(page)).to_have_count(1)
    say(page, "Hi")
    wait_until_done(page)
    page.get_by_role("tab", name="JSON").click()
    expect(page.locator("pre").first).to_contain_text("as base64")
    page.get_by_role("button", name="Copy").first.click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    body = json.loads(page.evaluate("navigator.clipboard.readText()"))
    response = page.request.post(f"{site.url}v1/chat/completions", data=body)
    assert response.ok
    assert site.service.pictures == [CLIP.read_bytes()] * 2
