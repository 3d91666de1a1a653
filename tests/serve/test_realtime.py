"""Live video through the whole graph: over a WebSocket, WebRTC and the relay."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from itertools import repeat
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import websockets
from websockets.asyncio.client import ClientConnection

from raylens.realtime.overlay import GREEN
from testing.moving_circle import RED, draw_circle, find, iou
from testing.pictures import encode_picture
from testing.webrtc_client import Client, to_rgb, wait_until
from tests.receiver import run_receiver
from tests.serve.conftest import ROOT, server_processes

SCENE = (ROOT / "docs/scene.png").read_bytes()
CAPTION = (
    "a red circle at the top left, a blue square at the center and a yellow triangle at the bottom"
    " right"
)
INTERVAL = 5
FRAMES = 60
FRAME_S = 1 / 15


@asynccontextmanager
async def connected(server: str, path: str) -> AsyncIterator[ClientConnection]:
    async with websockets.connect(server.replace("http", "ws") + path) as socket:
        yield socket


async def receive_answer(socket: ClientConnection) -> dict[str, Any]:
    """Return the last message of an answer, with all of its text."""
    text = ""
    async with asyncio.timeout(30):
        while True:
            message: dict[str, Any] = json.loads(await socket.recv())
            text += message["response"]
            if message["done"]:
                return {**message, "response": text}


async def test_pictures_over_a_websocket(server: str) -> None:
    async with connected(server, "/api/v1/ws") as socket:
        await socket.send(SCENE)
        assert (await receive_answer(socket))["response"] == CAPTION
        await socket.send("How many shapes are there?")
        for _ in range(40):
            await socket.send(SCENE)
        endings = [await receive_answer(socket) for _ in range(40)]
        answered = [ending for ending in endings if not ending.get("replaced")]
        assert {ending["response"] for ending in answered} == {"3"}
        assert answered[-1]["frame"] == 41
        assert len(answered) < 40
        await socket.send(b"no picture")
        error = await receive_answer(socket)
        assert error["status"] == 415
        assert error["error"].startswith("picture")
        await socket.send(json.dumps({"type": "settings", "task": "detect", "object": "circle"}))
        await socket.send(SCENE)
        assert len((await receive_answer(socket))["objects"]) == 1


async def test_a_model_that_takes_videos_answers_about_the_last_frames(server: str) -> None:
    settings = {"frames": 3, "model": "qwen2.5-vl", "prompt": "What happens in the video?"}
    async with connected(server, "/api/v1/ws") as socket:
        await socket.send(json.dumps(settings))
        for step in range(3):
            await socket.send(encode_picture(draw_circle(40 + 180 * step)))
            answer = await receive_answer(socket)
        assert answer["response"]
        assert "error" not in answer


@asynccontextmanager
async def filming(client: Client, lefts: Iterable[int]) -> AsyncIterator[None]:
    """Show a circle at these places, as a camera does, within the context."""

    async def film() -> None:
        for left in lefts:
            client.camera.show(draw_circle(left))
            await asyncio.sleep(FRAME_S)

    task = asyncio.create_task(film())
    yield
    task.cancel()


async def open_session(http: httpx.AsyncClient, client: Client, **parameters: Any) -> str:
    body = {"sdp": await client.offer(), "type": "offer", "initialParameters": parameters}
    answer = await http.post("/api/v1/webrtc/offer", json=body)
    assert answer.status_code == 200, answer.text
    await client.accept(answer.json()["sdp"])
    await client.wait_connected()
    return str(answer.json()["sessionId"])


async def test_boxes_follow_a_circle_over_webrtc(server: str) -> None:
    client = Client()
    async with httpx.AsyncClient(base_url=server, timeout=90) as http:
        session_id = await open_session(
            http, client, feature="detect", detect_object="red circle", inference_interval=INTERVAL
        )
        async with filming(client, range(40, 40 + 6 * FRAMES, 6)):
            await wait_until(lambda: len(client.frames) >= FRAMES - 5)
        results = client.received("results", "result")
        assert {len(result["objects"]) for result in results} == {1}
        assert {result["objects"][0]["number"] for result in results} == {1}
        assert len(results) <= FRAMES / INTERVAL + 2
        first = results[0]["frame_id"] + 10
        shown = [to_rgb(frame) for frame in client.frames[first:]]
        overlaps = []
        for pixels in shown:
            # The label is above the box, and as green.
            box = find(pixels[175:], GREEN)
            shape = find(pixels[175:], RED)
            if box is not None and shape is not None:
                overlaps.append(iou(box, shape))
        assert len(overlaps) > 0.8 * len(shown)
        assert min(overlaps) >= 0.7
        assert np.mean(overlaps) >= 0.8
        (started,) = client.received("results", "event")
        assert started["event"]["subject"] == "red circle"

        client.send({"feature": "query", "question": "What color is the circle?"})
        async with filming(client, repeat(200)):
            await wait_until(lambda: any("text" in each for each in client.messages["results"]))
        (answer,) = [each for each in client.messages["results"] if "text" in each][:1]
        assert answer["text"] == "red"

        assert (await http.delete(f"/api/v1/webrtc/offer/{session_id}")).status_code == 204
        gone = await http.patch(f"/api/v1/webrtc/offer/{session_id}", json={"candidates": []})
        assert gone.status_code == 404
        assert "has ended" in gone.json()["detail"]
        unknown = await http.delete("/api/v1/webrtc/offer/replica-session")
        assert unknown.status_code == 404
    await client.close()


async def test_the_events_of_a_session_reach_a_webhook(server: str) -> None:
    client = Client()
    secret = "whsec_" + base64.b64encode(os.urandom(24)).decode()
    async with httpx.AsyncClient(base_url=server, timeout=90) as http:
        session_id = await open_session(
            http, client, feature="detect", detect_object="red circle", inference_interval=INTERVAL
        )
        with run_receiver(secret) as receiver:
            body = {
                "source": f"session:{session_id}",
                "webhook": {"url": receiver.url, "secret": secret},
            }
            watch = (await http.post("/api/v1/watches", json=body)).raise_for_status().json()
            heard = receiver.bodies[watch["id"]]

            async with filming(client, repeat(200)):
                await wait_until(lambda: heard)
            path = f"/api/v1/webrtc/offer/{session_id}"
            assert (await http.delete(path)).status_code == 204
            await wait_until(lambda: len(heard) == 3)
        started, ended, over = sorted(heard.values(), key=lambda body: body["timestamp"])
        assert started["type"] == "watch.event.started"
        assert started["data"]["event"]["subject"] == "red circle"
        assert ended["type"] == "watch.event.ended"
        assert over["type"] == "job.succeeded"
    await client.close()


async def test_a_session_through_the_relay(server: str) -> None:
    client = Client()
    async with connected(server, "/api/v1/relay") as socket:

        async def call(**message: Any) -> dict[str, Any]:
            await socket.send(json.dumps(message))
            async with asyncio.timeout(60):
                answer: dict[str, Any] = json.loads(await socket.recv())
                return answer

        async with asyncio.timeout(10):
            assert json.loads(await socket.recv())["type"] == "ready"
        assert await call(type="set_user_id", user_id="u") == {
            "type": "user_id_set",
            "user_id": "u",
        }
        schemas = await call(type="api", method="GET", path="/api/v1/pipelines/schemas")
        assert "moondream" in schemas["data"]["pipelines"]
        offer = await client.offer()
        answer = await call(
            type="offer", sdp=offer, initialParameters={"feature": "caption"}, request_id="r"
        )
        assert (answer["type"], answer["request_id"]) == ("answer", "r")
        await client.accept(answer["sdp"])
        await client.wait_connected()
        ended = await call(type="icecandidate", candidate=None)
        assert ended["status"] == "end_of_candidates"
        async with filming(client, repeat(200)):
            await wait_until(lambda: client.received("results", "result"))
        result = client.received("results", "result")[0]
        assert "red circle" in result["text"]
        path = f"/api/v1/webrtc/offer/{answer['sessionId']}"
        assert (await call(type="api", method="DELETE", path=path))["status"] == 204
    await wait_until(lambda: client.received("results", "stream_stopped"))
    await client.close()


@pytest.mark.parametrize("sdp", ["v=0", "x" * 1000])
async def test_a_bad_offer_is_refused(server: str, sdp: str) -> None:
    async with httpx.AsyncClient(base_url=server, timeout=60) as http:
        answer = await http.post("/api/v1/webrtc/offer", json={"sdp": sdp})
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("sdp")


async def test_a_session_whose_replica_died_can_be_offered_again(server: str) -> None:
    client = Client()
    async with httpx.AsyncClient(base_url=server, timeout=90) as http:
        session_id = await open_session(http, client, feature="caption")
        path = f"/api/v1/webrtc/offer/{session_id}"
        assert (await http.get(path)).json()["status"] == "connected"
        processes = [psutil.Process(process) for process in server_processes()]
        (replica,) = [p for p in processes if "ServeReplica:raylens:Realtime" in p.cmdline()[0]]
        replica.kill()
        replica.wait(10)
        gone = await http.get(path)
        assert gone.status_code == 404
        assert "open another session" in gone.json()["detail"]
        await client.close()
        again = Client()
        await open_session(http, again, feature="caption")
        async with filming(again, repeat(200)):
            await wait_until(lambda: again.received("results", "result"))
    await again.close()
