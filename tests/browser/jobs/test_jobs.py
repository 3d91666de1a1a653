"""The tab "Jobs", used as a person does, over a real queue."""

from __future__ import annotations

import base64
import csv
import json
import re
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from raylens.core.errors import ModelFailed
from tests.browser.jobs_page import (
    PICTURES,
    act,
    choose_task,
    download,
    drop,
    states,
    submit,
    submit_all,
    wait_until,
    write,
)
from tests.browser.site import CAPTION, Site, find_red
from tests.receiver import run_receiver

pytestmark = pytest.mark.browser


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


def test_what_is_no_picture_is_refused_with_its_reason(
    page: Page, site: Site, tmp_path: Path
) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    write(folder, "good.png")
    (folder / "notes.txt").write_text("hello")
    (folder / "none.png").write_bytes(b"")
    Image.new("RGB", (2100, 8)).save(folder / "wide.png")
    drop(page, folder)
    expect(page.get_by_text("1 picture ready")).to_be_visible()
    page.get_by_text("3 files were refused").click()
    listed = page.locator(".refusals")
    expect(listed).to_contain_text("mixed/notes.txt")
    for reason in ("notes.txt is not a picture.", "none.png is empty.", "a side of 2100 pixels"):
        expect(listed).to_contain_text(reason)
    submit(page)
    states(page, succeeded=1)
    assert len(site.service.requests) == 1
    expect(page.get_by_text("3 files were refused")).to_be_visible()


def test_what_is_submitted_leaves_the_card(page: Page, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    drop(page, write(tmp_path, "one.png"), write(tmp_path, "two.png", 1), tmp_path / "notes.txt")
    expect(page.get_by_text("2 pictures ready")).to_be_visible()
    card = page.locator(".uploads")
    card.get_by_role("button", name="Remove all").click()
    expect(card.get_by_text("2 pictures ready")).to_have_count(0)
    card.get_by_text("1 file was refused").click()
    card.get_by_role("button", name="Hide").click()
    expect(card.locator(".refusals")).to_have_count(0)
    submit_all(page, tmp_path / "one.png", tmp_path / "two.png")
    expect(card.locator(".chosen")).to_have_count(0)
    expect(card.get_by_role("button", name="Remove all")).to_have_count(0)
    submit_all(page, write(tmp_path, "three.png", 2))
    states(page, succeeded=3)
    card.get_by_role("button", name="Hide").click()
    expect(card.get_by_test_id("progress")).to_have_count(0)


def test_submit_says_what_is_missing(page: Page, site: Site, tmp_path: Path) -> None:
    submit(page)
    expect(page.get_by_role("alert")).to_contain_text("Drop or choose pictures first.")
    drop(page, write(tmp_path, "one.png"))
    expect(page.get_by_text("1 picture ready")).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)
    choose_task(page, "Ask")
    submit(page)
    expect(page.get_by_role("alert")).to_contain_text("Fill in “Question” first.")
    assert not site.service.requests


def test_settings_and_the_names_of_files_reach_the_job(
    page: Page, site: Site, folder: Path
) -> None:
    jobs = page.locator(".jobs")
    page.locator("input[webkitdirectory]").set_input_files(folder / "left")
    expect(page.get_by_text("10 pictures ready")).to_be_visible()
    choose_task(page, "Detect")
    jobs.get_by_label("Object to find").fill("circle")
    jobs.get_by_text("More settings").click()
    jobs.get_by_label("Recipe").select_option("enhanced")
    jobs.get_by_label("Max objects, value").fill("3")
    jobs.get_by_text("Webhook and priority").click()
    jobs.get_by_label("Priority", exact=True).fill("7")
    submit(page)
    states(page, succeeded=10)
    job = page.request.get(f"{site.url}api/v1/jobs?limit=1&fields=input,priority,query").json()
    shown = job["jobs"][0]
    assert shown["priority"] == 7
    assert shown["query"]["file"].startswith("left/")
    image = shown["input"].pop("image")
    assert image.startswith("blob:")
    assert shown["input"] == {"object": "circle", "recipe": "enhanced", "max_objects": 3}
    red = find_red()
    card = page.locator(".job").first
    card.scroll_into_view_if_needed()
    frame, mark = card.locator(".frame").bounding_box(), card.locator(".mark").first.bounding_box()
    assert frame is not None
    assert mark is not None
    assert (mark["x"] - frame["x"]) / frame["width"] == pytest.approx(red.x_min, abs=0.02)
    assert (mark["y"] - frame["y"]) / frame["height"] == pytest.approx(red.y_min, abs=0.02)
    assert mark["width"] / frame["width"] == pytest.approx(red.x_max - red.x_min, abs=0.02)


def test_a_failed_job_says_why_and_can_be_retried(page: Page, site: Site, tmp_path: Path) -> None:
    site.service.error = ModelFailed("out of memory")
    submit_all(page, write(tmp_path, "one.png"), write(tmp_path, "two.png", 1))
    states(page, failed=2)
    expect(page.locator(".job-answer.problem").first).to_have_text("Out of memory.")
    site.service.error = None
    page.get_by_role("button", name="Open one.png").click()
    expect(page.get_by_role("dialog")).to_contain_text("Out of memory.")
    page.get_by_role("dialog").get_by_role("button", name="Retry").click()
    expect(page.get_by_test_id("job-answer")).to_have_text(CAPTION)
    page.get_by_role("button", name="Close").click()
    states(page, failed=1, succeeded=1)
    page.get_by_role("button", name="Select all 2").click()
    act(page, "Retry 1")
    states(page, succeeded=2)


def test_jobs_are_canceled_and_removed_many_at_a_time(page: Page, site: Site, folder: Path) -> None:
    site.service.gate.clear()
    choose_task(page, "Caption")
    drop(page, folder)
    expect(page.get_by_text("20 pictures ready")).to_be_visible()
    submit(page)
    expect(page.get_by_test_id("progress")).to_contain_text("20 of 20 uploaded")
    page.get_by_role("checkbox", name="Select 00.png").check()
    act(page, "Cancel")
    states(page, canceled=1)
    page.get_by_role("button", name="Select all 20").click()
    act(page, "Cancel 19")
    states(page, canceled=20)
    without_duration = re.compile(r"^Caption · \d\d:\d\d$")
    expect(page.locator(".job-facts")).to_have_text([without_duration] * PICTURES)
    expect(page.get_by_test_id("progress")).to_contain_text("20 canceled")
    page.get_by_role("button", name="Select all 20").click()
    act(page, "Remove 20")
    asked = page.get_by_role("alertdialog")
    expect(asked).to_contain_text("Remove 20 jobs with pictures and results?")
    expect(asked.get_by_role("button", name="Keep")).to_be_focused()
    asked.get_by_role("button", name="Keep").click()
    states(page, canceled=20)
    act(page, "Remove 20")
    asked.get_by_role("button", name="Remove").click()
    expect(page.locator(".job")).to_have_count(0)
    assert page.request.get(f"{site.url}api/v1/jobs").json()["jobs"] == []


def test_filters_and_downloads(page: Page, site: Site, tmp_path: Path) -> None:
    jobs = page.locator(".jobs")
    formula = '=HYPERLINK("http://example.com")\nand more'
    submit_all(page, write(tmp_path, "cats, and dogs.png"))
    states(page, succeeded=1)
    choose_task(page, "Ask")
    jobs.get_by_label("Question").fill("What color is it?")
    site.service.words = (formula,)
    submit_all(page, write(tmp_path, "-two.png", 1))
    states(page, succeeded=2)
    choose_task(page, "Detect")
    jobs.get_by_label("Object to find").fill("circle")
    submit_all(page, write(tmp_path, "three.png", 2))
    states(page, succeeded=3)
    site.service.error = ModelFailed("out of memory")
    submit_all(page, write(tmp_path, "four.png", 3))
    states(page, failed=1)

    cards = page.locator(".job")
    rows = list(csv.DictReader(download(page, "CSV").splitlines(keepends=True)))
    assert [row["file"] for row in rows] == [
        "four.png", "three.png", "'-two.png", "cats, and dogs.png"
    ]  # fmt: skip
    assert rows[0]["error"] == "out of memory"
    assert rows[2]["answer"] == f"'{formula}"
    assert rows[2]["prompt"] == "What color is it?"
    assert (rows[3]["answer"].strip(), rows[3]["model"], rows[3]["task"]) == (
        CAPTION,
        "moondream",
        "caption",
    )
    assert json.loads(rows[1]["boxes"])[0]["x_min"] == find_red().x_min
    assert download(page, "CSV").count("\r\n") == 5

    page.get_by_role("combobox", name="Any state").select_option("succeeded")
    expect(cards).to_have_count(3)
    page.get_by_role("combobox", name="Any task").select_option("caption")
    expect(cards).to_have_count(1)
    lines = [json.loads(line) for line in download(page, "JSONL").splitlines()]
    assert [line["file"] for line in lines] == ["cats, and dogs.png"]
    assert lines[0]["answer"].strip() == CAPTION
    assert lines[0]["started_at"] <= lines[0]["finished_at"]
    page.get_by_role("button", name="Reset filter").click()
    expect(cards).to_have_count(4)
    for text in ("what COLOR", '"what co', '"what color"', "“what color” "):
        page.get_by_label("Search names").fill(text)
        expect(cards).to_have_count(1)
        expect(cards).to_contain_text("-two.png")
    page.get_by_label("Search names").fill("color what")
    expect(page.get_by_text("No job matches the filter.")).to_be_visible()


def test_jobs_of_earlier_visits_are_shown_with_their_pictures(
    page: Page, site: Site, folder: Path
) -> None:
    submit_all(page, *sorted((folder / "left").iterdir()))
    states(page, succeeded=10)
    page.reload()
    states(page, succeeded=10)
    page.locator(".job").last.scroll_into_view_if_needed()
    thumbnails = page.locator(".job .thumb img")
    expect(thumbnails).to_have_count(10)
    page.get_by_role("button", name="Open 01.png").click()
    picture = page.get_by_role("dialog").locator(".frame img")
    size = picture.evaluate("(image) => image.decode().then(() => image.naturalWidth)")
    assert size == 96


def test_jobs_of_others_appear_by_themselves(page: Page, site: Site, tmp_path: Path) -> None:
    data = base64.b64encode(write(tmp_path, "one.png").read_bytes()).decode()
    body = {"job_type": "query", "input": {"image": data, "question": "What is it?"}}
    job = page.request.post(f"{site.url}api/v1/jobs", data=body).json()
    states(page, succeeded=1)
    expect(page.locator(".job")).to_contain_text(f"query …{job['id'][-6:]}")
    expect(page.locator(".job .thumb img")).to_have_count(1)
    page.request.delete(f"{site.url}api/v1/jobs/{job['id']}")
    expect(page.locator(".job")).to_have_count(0)


def test_webhook_deliveries_are_shown_and_sent_again(
    page: Page, site: Site, tmp_path: Path
) -> None:
    secret = "whsec_" + base64.b64encode(b"0" * 32).decode()
    jobs = page.locator(".jobs")
    with run_receiver(secret) as receiver:
        jobs.get_by_text("Webhook and priority").click()
        jobs.get_by_label("Webhook URL").fill(receiver.url)
        jobs.get_by_label("Webhook secret").fill(secret)
        submit_all(page, write(tmp_path, "one.png"))
        states(page, succeeded=1)
        page.get_by_role("button", name="Open one.png").click()
        page.get_by_role("tab", name="Webhooks").click()
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text("job.succeeded")
        expect(dialog.get_by_text("Delivered")).to_be_visible()
        page.get_by_role("button", name="Send again").click()
        wait_until(page, lambda: list(receiver.times.values()) == [2])
        expect(dialog.get_by_text("Delivered")).to_be_visible()
        page.get_by_role("tab", name="JSON").click()
        expect(dialog.locator("pre")).to_contain_text('"caption": "a red circle')
    assert not receiver.refused


def test_everything_is_reached_by_keyboard(page: Page, site: Site, tmp_path: Path) -> None:
    submit_all(page, write(tmp_path, "one.png"), write(tmp_path, "two.png", 1))
    states(page, succeeded=2)
    names = page.locator(".job-name").all_inner_texts()
    page.locator(".job-picture").first.focus()
    page.keyboard.press("Enter")
    title = page.get_by_role("dialog").get_by_role("heading", name=names[0])
    expect(title).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("dialog").get_by_role("heading", name=names[1])).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.locator(".job-picture").first).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    expect(page.get_by_text("1 selected")).to_be_visible()


def test_remove_asks_again_for_another_job(page: Page, tmp_path: Path) -> None:
    submit_all(page, *(write(tmp_path, f"{number}.png", number) for number in range(3)))
    states(page, succeeded=3)
    first, second, third = page.locator(".job-name").all_inner_texts()
    page.get_by_role("button", name=f"Open {first}").click()
    dialog = page.get_by_role("dialog")
    act(page, "Remove")
    expect(page.get_by_role("alertdialog")).to_be_visible()
    dialog.get_by_role("button", name="Next").click()
    expect(dialog.get_by_role("heading", name=second)).to_be_visible()
    expect(page.get_by_role("alertdialog")).to_have_count(0)
    act(page, "Remove")
    page.get_by_role("alertdialog").get_by_role("button", name="Remove").click()
    expect(dialog.get_by_role("heading", name="This job has been removed.")).to_be_visible()
    dialog.get_by_role("button", name="Next").click()
    expect(dialog.get_by_role("heading", name=third)).to_be_visible()
    dialog.get_by_role("button", name="Previous").click()
    expect(dialog.get_by_role("heading", name=first)).to_be_visible()
