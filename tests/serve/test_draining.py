"""A server of its own that is drained: by ``raylens drain``, and by signals."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets
import yaml
from websockets.asyncio.client import ClientConnection

from raylens.cli.drain import find_server, has_ended
from raylens.core.keys import hash_key
from testing.checkpoints import slow_smolvlm
from testing.pictures import encode_picture, gradient
from testing.server import running_server
from testing.webrtc_client import Client, wait_until
from tests.serve.conftest import ROOT, add_cramped_model

RAYLENS = str(Path(sys.executable).with_name("raylens"))
TOKENS = 1500
"""Of each answer; they take some seconds."""
CHAT = "/v1/chat/completions"


@pytest.fixture
def auth() -> dict[str, Any] | None:
    """The server's keys."""
    return None


@pytest.fixture
def url(tmp_path: Path, auth: dict[str, Any] | None) -> Iterator[str]:
    """A server with the cramped model alone, whose answers are long, and with one worker."""
    checkpoint = slow_smolvlm(tmp_path / "cramped")

    def change(config: dict[str, Any]) -> None:
        (application,) = config["applications"]
        application["args"]["models"] = []
        application["deployments"] = [
            deployment
            for deployment in application["deployments"]
            if deployment["name"] in ("Ingress", "Preprocessor")
        ]
        add_cramped_model(config, checkpoint)
        application["args"]["defaults"] = {"max_tokens": TOKENS}
        application["args"]["jobs"] = {"data_dir": str(tmp_path / "data"), "workers": 1}
        if auth is not None:
            application["args"]["auth"] = auth

    with running_server(ROOT / "serve_config.yaml", change) as url:
        yield url


def states_of_jobs(folder: Path) -> list[str]:
    """Return the states of the jobs in a store whose server has ended, the oldest first."""
    with sqlite3.connect(next(folder.glob("*.sqlite*"))) as store:
        return [state for (state,) in store.execute("SELECT state FROM jobs ORDER BY id")]


class Stream:
    """An answer that is streamed."""

    def __init__(self, lines: AsyncIterator[str]) -> None:
        self._lines = lines
        self.seen: list[str] = []

    async def read(self) -> bool:
        """Read a line that isn't empty. Return False at the end."""
        async for line in self._lines:
            if line:
                self.seen.append(line)
                return True
        return False

    async def read_all(self) -> list[str]:
        while await self.read():
            pass
        return self.seen


async def begin_drain(http: httpx.AsyncClient, *options: str) -> asyncio.subprocess.Process:
    """Run ``raylens drain`` until the server says that it drains."""
    port = str(http.base_url.port)
    process = await asyncio.create_subprocess_exec(
        RAYLENS, "drain", "--port", port, *options, stdout=subprocess.PIPE
    )
    async with asyncio.timeout(60):
        while (ready := await http.get("/ready")).status_code == 200:
            await asyncio.sleep(0.05)
    assert ready.json()["status"] == "draining"
    return process


async def test_a_server_that_is_drained_ends_what_has_begun_and_keeps_its_jobs(
    url: str, tmp_path: Path
) -> None:
    server, _ = find_server(int(url.rpartition(":")[2]))
    limits = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as http:
        job = {"job_type": "query", "input": {"question": "what is it?"}}
        ids = [(await http.post("/api/v1/jobs", json=job)).json()["id"] for _ in range(2)]
        body = {
            "model": "cramped",
            "stream": True,
            "messages": [{"role": "user", "content": "what is it?"}],
        }
        async with (
            http.stream("POST", CHAT, json=body) as answer,
            http.stream("GET", f"/api/v1/jobs/{ids[1]}/events") as watched,
        ):
            tokens, events = Stream(answer.aiter_lines()), Stream(watched.aiter_lines())
            assert await tokens.read()
            assert await events.read()
            drain = await begin_drain(http)
            refused = await http.post(CHAT, json=body)
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) > 0
            assert refused.headers["connection"] == "close"
            assert refused.json()["error"]["code"] == "overloaded"
            assert (await http.post("/api/v1/jobs", json=job)).status_code == 503
            assert (await http.get("/-/healthz")).status_code == 503
            assert (await http.get("/health")).json()["status"] == "healthy"
            # The client of the events has to go elsewhere, and soon.
            seen = await asyncio.wait_for(events.read_all(), 5)
            assert seen[-1].startswith("retry: ")
            seen = await tokens.read_all()
    assert seen[-1] == "data: [DONE]"
    last = json.loads(seen[-2].removeprefix("data: "))
    assert last["choices"][0]["finish_reason"] in ("length", "stop")
    output, _ = await asyncio.wait_for(drain.communicate(), 60)
    assert drain.returncode == 0
    assert b"requests in flight: " in output
    assert output.endswith(b"the server has ended\n")
    assert has_ended(server)
    # The one that ran has ended, too; the other one hasn't begun.
    assert states_of_jobs(tmp_path / "data") == ["succeeded", "queued"]


class TestLiveVideo:
    """Sessions of a server with keys."""

    @pytest.fixture
    def keys_file(self, tmp_path: Path) -> Path:
        return tmp_path / "keys.yaml"

    @pytest.fixture
    def auth(self, keys_file: Path) -> dict[str, Any]:
        write_keys(keys_file, "camera", "other")
        return {"keys_file": str(keys_file)}

    async def test_sessions_end_with_their_key_and_with_the_server(
        self, url: str, keys_file: Path
    ) -> None:
        video, stopped = Client(), Client()
        async with (
            httpx.AsyncClient(base_url=url, timeout=90) as http,
            live_socket(url, "/api/v1/ws", "camera") as pictures,
            live_socket(url, "/api/v1/relay", "camera") as relay,
            live_socket(url, "/api/v1/ws", "other") as asked,
        ):
            assert (await receive(relay))["type"] == "ready"
            await open_video(http, video, "camera")
            await open_video(http, stopped, "other")
            write_keys(keys_file, "other")
            for idle in (pictures, relay):
                assert "unknown key" in (await receive(idle))["error"]
                assert await receive_close(idle) == 4401
            (end,) = await wait_until(lambda: video.received("parameters", "stream_stopped"))
            assert end["error_message"] == "its key is no longer valid"

            await asked.send(json.dumps({"model": "cramped", "prompt": "What is it?"}))
            assert (await receive(asked))["type"] == "settings"
            await asked.send(encode_picture(gradient(64, 48)))
            assert (await receive(asked))["response"]
            drain = await begin_drain(http)
            await asked.send(encode_picture(gradient(64, 48)))  # too late: it gets no answer
            while not (message := await receive(asked))["done"]:
                assert message["frame"] == 1
            assert message["done_reason"] in ("length", "stop")
            assert message["eval_count"] > 100
            end = await receive(asked)
            assert (end["status"], end["done"]) == (503, True)
            assert "about to stop" in end["error"]
            assert await receive_close(asked) == 1012
            (end,) = await wait_until(lambda: stopped.received("parameters", "stream_stopped"))
            assert "about to stop" in end["error_message"]
        await video.close()
        await stopped.close()
        await asyncio.wait_for(drain.communicate(), 60)
        assert drain.returncode == 0


def write_keys(file: Path, *names: str) -> None:
    keys = [{"name": name, "hash": hash_key(f"key-of-{name}")} for name in names]
    file.with_suffix(".new").write_text(yaml.safe_dump({"keys": keys}))
    file.with_suffix(".new").replace(file)


def live_socket(url: str, path: str, key: str) -> websockets.connect:
    headers = {"X-API-Key": f"key-of-{key}"}
    return websockets.connect(url.replace("http", "ws") + path, additional_headers=headers)


async def receive(socket: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(30):
        message: dict[str, Any] = json.loads(await socket.recv())
        return message


async def receive_close(socket: ClientConnection) -> int | None:
    async with asyncio.timeout(30):
        await socket.wait_closed()
    return socket.close_code


async def open_video(http: httpx.AsyncClient, client: Client, key: str) -> None:
    """Open a WebRTC session that asks nothing, since no frame comes."""
    body = {"sdp": await client.offer(), "type": "offer"}
    headers = {"X-API-Key": f"key-of-{key}"}
    answer = await http.post("/api/v1/webrtc/offer", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    await client.accept(answer.json()["sdp"])
    await client.wait_connected()


@pytest.mark.cluster  # for its time: it needs a server of its own, too
async def test_a_second_signal_ends_a_server_at_once(url: str, tmp_path: Path) -> None:
    server, _ = find_server(int(url.rpartition(":")[2]))
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        job = {"job_type": "query", "input": {"question": "what is it?"}}
        await http.post("/api/v1/jobs", json=job)
        server.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            while (ready := await http.get("/ready")).status_code == 200:
                await asyncio.sleep(0.05)
        assert ready.json()["status"] == "draining"
    begun_at = time.monotonic()
    server.send_signal(signal.SIGTERM)
    while not has_ended(server):
        assert time.monotonic() - begun_at < 45
        await asyncio.sleep(0.1)
