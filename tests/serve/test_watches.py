"""Watches of a camera, through the whole graph: from its pictures to signed webhooks."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import httpx
import numpy as np
import psutil

from raylens.realtime.overlay import Pixels
from testing.mjpeg_server import WebCamera, running_web_camera
from testing.rtsp_server import RtspCamera, running_camera
from tests.receiver import Receiver, run_receiver
from tests.serve.conftest import server_processes

PATH = "/api/v1/watches"
FIELD_S = 60.0


def draw(has_circle: bool) -> Pixels:
    pixels = np.full((480, 640, 3), 190, np.uint8)
    if has_circle:
        cv2.circle(pixels, (250, 250), 72, (220, 40, 40), -1, cv2.LINE_AA)
    return pixels


def jpeg(pixels: Pixels) -> bytes:
    _, data = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    return data.tobytes()


EMPTY, CIRCLE = jpeg(draw(False)), jpeg(draw(True))


def wait_for(condition: Callable[[], Any], seconds: float = FIELD_S) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.05)
    return value


class Watch:
    """A watch of the server, and what its webhook heard."""

    def __init__(self, client: httpx.Client, receiver: Receiver, source: str) -> None:
        self._client = client
        self._receiver = receiver
        body = {
            "source": source,
            "fps": 5,
            "pipeline": {"feature": "detect", "detect_object": "red circle"},
            "events": ["event.started", "event.ended", "source.connected", "source.lost"],
            "webhook": {"url": receiver.url, "secret": receiver.secret},
        }
        response = client.post(PATH, json=body)
        assert response.status_code == 202, response.text
        self.id = response.json()["id"]

    @property
    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = self._client.get(f"{PATH}/{self.id}").raise_for_status().json()
        return state

    def heard(self, kind: str) -> list[dict[str, Any]]:
        bodies = list(self._receiver.bodies[self.id].values())
        return [body["data"] for body in bodies if body["type"] == kind]

    def stop(self) -> None:
        stopped = self._client.delete(f"{PATH}/{self.id}")
        assert stopped.json()["status"] == "canceled"
        wait_for(lambda: self.heard("job.canceled"))


@contextmanager
def watching(server: str, source: str) -> Iterator[Watch]:
    secret = "whsec_" + base64.b64encode(os.urandom(24)).decode()
    with httpx.Client(base_url=server, timeout=30) as client, run_receiver(secret) as receiver:
        watch = Watch(client, receiver, source)
        yield watch
        watch.stop()
        assert not receiver.refused


def find_process(name: str) -> psutil.Process:
    processes = [psutil.Process(pid) for pid in server_processes()]
    (process,) = [process for process in processes if name in process.cmdline()[0]]
    return process


def test_a_watch_tells_what_comes_and_goes_over_every_outage(server: str) -> None:
    camera = WebCamera([EMPTY], interval_s=0.1)
    with running_web_camera(camera), watching(server, camera.url()) as watch:
        wait_for(lambda: watch.heard("watch.source.connected"))
        wait_for(lambda: watch.state["last_result"])
        assert watch.state["last_result"]["objects"] == []
        camera.pictures = [CIRCLE]
        started = wait_for(lambda: watch.heard("watch.event.started"))
        assert started[0]["event"]["subject"] == "red circle"
        assert started[0]["event"]["count"] == 1
        # The replica dies: what had started has ended, and starts again elsewhere.
        find_process("ServeReplica:raylens:Realtime").kill()
        wait_for(lambda: len(watch.heard("watch.event.started")) == 2)
        (ended,) = watch.heard("watch.event.ended")
        assert ended["event"]["interrupted"]
        assert watch.state["status"] == "running"
        # The camera goes away, and comes back without the circle.
        camera.status = "503 Busy"
        camera.end_at = camera.sent
        wait_for(lambda: watch.heard("watch.source.lost"))
        camera.pictures, camera.status, camera.end_at = [EMPTY], "200 OK", None
        wait_for(lambda: len(watch.heard("watch.event.ended")) == 2)
        last = watch.heard("watch.event.ended")[-1]["event"]
        assert last["duration_s"] > 0
        assert "interrupted" not in last
        numbers = [event["number"] for event in watch.state["recent_events"]]
        assert numbers == [1, 2, 3, 4]
    # No connection to the camera is left.
    wait_for(lambda: camera.open_connections == 0)


def test_a_watch_of_an_rtsp_camera(server: str) -> None:
    camera = RtspCamera([draw(True)] * 20, user="root", password="passphrase")
    with running_camera(camera), watching(server, camera.url) as watch:
        wait_for(lambda: watch.heard("watch.event.started"))
        state = watch.state
        assert "passphrase" not in str(state)
        (found,) = state["last_result"]["objects"]
        assert abs((found["x_min"] + found["x_max"]) / 2 - 250 / 640) < 0.03


def test_a_watch_goes_on_once_when_the_queue_dies(server: str) -> None:
    camera = WebCamera([CIRCLE], interval_s=0.1)
    with running_web_camera(camera), watching(server, camera.url()) as watch:
        wait_for(lambda: watch.heard("watch.event.started"))
        find_process("JobQueueActor").kill()
        wait_for(lambda: len(watch.heard("watch.event.started")) == 2)
        # The replica has noticed that nobody listens to the first one any more.
        wait_for(lambda: camera.open_connections == 1)
    wait_for(lambda: camera.open_connections == 0)
