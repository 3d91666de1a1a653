"""The tab "Jobs", used as a person does, over a real queue."""

from __future__ import annotations

import base64
import csv
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import APIResponse, Browser, Page, Route, expect

from raylens.core.errors import ModelFailed
from raylens.core.keys import hash_key
from tests.browser.conftest import opened
from tests.browser.job_site import serving_jobs
from tests.browser.site import CAPTION, Site, find_red, serving
from tests.receiver import run_receiver

pytestmark = pytest.mark.browser

PICTURES = 20


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with serving_jobs(tmp_path / "queue") as site:
        yield site


@pytest.fixture
def page(browser: Browser, site: Site) -> Iterator[Page]:
    yield from opened_jobs(browser, site.url)


def opened_jobs(browser: Browser, url: str) -> Iterator[Page]:
    for page in opened(browser, url):
        page.get_by_role("tab", name="Jobs").click()
        yield page


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


def write(folder: Path, name: str, number: int = 0) -> Path:
    path = folder / name
    draw(number).save(path)
    return path


def submit_all(page: Page, *paths: Path) -> None:
    """Submit pictures, and wait until the queue has them."""
    drop(page, *paths)
    expect(page.get_by_text(re.compile(r"pictures? ready"))).to_be_visible()
    submit(page)
    expect(page.get_by_test_id("progress")).to_contain_text(
        f"{len(paths)} of {len(paths)} uploaded"
    )


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


def test_submit_says_what_is_missing(page: Page, site: Site, tmp_path: Path) -> None:
    submit(page)
    expect(page.get_by_role("alert")).to_contain_text("Drop or choose pictures first.")
    drop(page, write(tmp_path, "one.png"))
    expect(page.get_by_text("1 picture ready")).to_be_visible()
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
    jobs.get_by_role("button", name="Clear").click()
    submit_all(page, write(tmp_path, "-two.png", 1))
    states(page, succeeded=2)
    choose_task(page, "Detect")
    jobs.get_by_label("Object to find").fill("circle")
    jobs.get_by_role("button", name="Clear").click()
    submit_all(page, write(tmp_path, "three.png", 2))
    states(page, succeeded=3)
    site.service.error = ModelFailed("out of memory")
    jobs.get_by_role("button", name="Clear").click()
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
    page.get_by_label("Search names").fill("COLOR what")
    expect(cards).to_have_count(1)
    expect(cards).to_contain_text("-two.png")
    page.get_by_label("Search names").fill("nothing has this")
    expect(page.get_by_text("No job matches the filter.")).to_be_visible()


def test_a_server_that_stops_and_is_back_loses_nothing(
    browser: Browser, tmp_path: Path, folder: Path
) -> None:
    with serving_jobs(tmp_path / "queue") as site:
        port = int(site.url.rsplit(":", 1)[1].strip("/"))
        site.service.gate.clear()
        pages = opened_jobs(browser, site.url)
        page = next(pages)
        submit_all(page, *sorted((folder / "left").iterdir()))
        expect(page.locator(".job")).to_have_count(10)
    expect(page.get_by_text("Not connected")).to_be_visible()
    expect(
        page.get_by_text("The server does not answer. The list goes on by itself")
    ).to_be_visible()
    drop(page, folder / "right")
    expect(page.get_by_text("10 pictures ready")).to_be_visible()
    submit(page)
    expect(page.get_by_text("The upload goes on by itself")).to_be_visible()
    with serving_jobs(tmp_path / "queue", port) as again:
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
            expect(page.get_by_role("button", name="Go on")).to_be_visible()
            site.service.gate.set()
            states(page, succeeded=4)
            page.get_by_role("button", name="Go on").click()
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
            expect(page.get_by_text("The upload goes on by itself")).to_be_visible()
            page.get_by_role("button", name="Stop upload").click()
            expect(page.get_by_text("pictures ready")).to_be_visible()
            site.service.gate.set()
            submit(page)
            states(page, succeeded=10)


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
        page.wait_for_function("() => true")
        expect(dialog.get_by_text("Delivered")).to_be_visible()
        page.get_by_role("tab", name="JSON").click()
        expect(dialog.locator("pre")).to_contain_text('"caption": "a red circle')
    assert list(receiver.times.values()) == [2]
    assert not receiver.refused


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


def test_a_server_without_a_queue_says_so(browser: Browser) -> None:
    with serving() as site:
        for page in opened_jobs(browser, site.url):
            expect(page.get_by_text("This server has no job queue")).to_be_visible()


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
    expect(dialog.get_by_text("The change goes on by itself.")).to_be_visible()
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
    wait_until(page, lambda: len(seen) == 2)
    expect(stop).to_be_visible()
    wait_until(page, lambda: len(seen) == 4)
    expect(stop).to_have_count(0)
