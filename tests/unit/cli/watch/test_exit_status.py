"""The exit status of ``raylens watch`` if a source or an endpoint fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner
from typer.testing import Result as CommandResult

from raylens.cli.main import app
from testing.mjpeg_server import WebCamera, running_web_camera
from testing.pictures import encode_picture
from testing.ports import free_port
from tests.unit.cli.watch.fake_vision import FakeVision, draw_frame, write_video

JPEGS = [encode_picture(draw_frame(0), "JPEG")]
SECONDS = 1
"""Enough to be refused by this machine."""


def run(*arguments: object) -> CommandResult:
    vision = FakeVision()
    return CliRunner().invoke(app, ["watch", *map(str, arguments)], obj=vision.client_arguments)


def test_a_camera_that_refuses_the_password() -> None:
    camera = WebCamera(JPEGS, user="user", password="right")
    with running_web_camera(camera):
        url = camera.url().replace("right", "wrong")
        outcome = run(url, "--caption", "--seconds", SECONDS)
    assert outcome.exit_code == 1, outcome.output
    shown = f"http://127.0.0.1:{camera.port}/video.cgi?…"
    last = outcome.stderr.splitlines()[-1]
    assert last.startswith(f"stopped: {shown}: it gave no frame: ")
    assert "password" in last
    assert last.count(shown) == 1


@pytest.mark.parametrize(
    ("camera", "reason"),
    [
        (WebCamera(JPEGS, status="404 Not Found"), "404"),
        (WebCamera([b"<html></html>"], content_type="text/html", is_snapshot=True), "text/html"),
        (WebCamera(JPEGS, hang_at=0), "nothing came"),
    ],
    ids=["missing", "page", "silent"],
)
def test_what_never_gives_a_frame(camera: WebCamera, reason: str) -> None:
    with running_web_camera(camera):
        outcome = run(camera.url(), "--caption", "--seconds", SECONDS)
    assert outcome.exit_code == 1, outcome.output
    last = outcome.stderr.splitlines()[-1]
    assert "it gave no frame: " in last
    assert reason in last


@pytest.mark.parametrize(
    ("source", "reason"),
    [("rtsp://127.0.0.1:{port}/live", "refused"), ("camera:7", "no such camera")],
)
def test_what_is_not_there(source: str, reason: str) -> None:
    outcome = run(source.format(port=free_port()), "--caption", "--seconds", SECONDS)
    assert outcome.exit_code == 1, outcome.output
    last = outcome.stderr.splitlines()[-1]
    assert "it gave no frame: " in last
    assert reason in last


def test_a_folder_to_which_nothing_is_added_is_no_failure(tmp_path: Path) -> None:
    outcome = run(tmp_path, "--follow", "--caption", "--seconds", 0.3)
    assert outcome.exit_code == 0, outcome.output


def test_events_that_were_not_delivered(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4")
    with running_web_camera(WebCamera([b""], status="410 Gone", is_snapshot=True)) as endpoint:
        outcome = run(video, "--detect", "circle", "--webhook", endpoint.url())
    assert outcome.exit_code == 1, outcome.output
    assert "--webhook: 2 events were not delivered" in outcome.stderr
    assert "0 failed, 2 events" in outcome.stderr
