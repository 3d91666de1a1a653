"""Sessions through a TURN server, coturn, as docs/turn.md sets it up."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiortc import RTCIceServer

from raylens.core.webrtc_config import WebRtcConfig
from raylens.realtime.webrtc.ice_servers import ice_servers_json
from raylens.realtime.webrtc.sessions import Sessions
from testing.ports import free_port
from testing.webrtc_client import LOOPBACK, Client
from tests.unit.raylens.realtime.webrtc.processors import Marker

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(
        shutil.which("turnserver") is None, reason="turnserver is missing: apt-get install coturn"
    ),
]

PAGE = Path(__file__).parents[2] / "docs/turn.md"
SECRET = "north-and-south"
START_S = 10.0
KINDS = ("expiring", "fixed")
TRANSPORTS = ("udp", "tcp")


def read_page(kind: str) -> tuple[str, WebRtcConfig]:
    """Return the two configurations of a kind of credentials: coturn's and ours."""
    text = PAGE.read_text()
    (expiring, fixed), configs = (
        re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        for language in ("ini", "yaml")
    )
    if kind == "fixed":
        expiring = re.sub(r"use-auth-secret\n.*\n", fixed, expiring)
    settings = yaml.safe_load(configs[KINDS.index(kind)])["realtime"]["webrtc"]
    return expiring, WebRtcConfig.model_validate(settings)


def at(config: WebRtcConfig, port: int, transport: str) -> WebRtcConfig:
    """Return the configuration with the URL of a server on this machine."""
    (server,) = config.model_dump()["ice_servers"]
    url = f"turn:127.0.0.1:{port}?transport={transport}"
    return WebRtcConfig.model_validate({"ice_servers": [{**server, "urls": url}]})


@contextmanager
def coturn(settings: str, folder: Path, port: int) -> Iterator[None]:
    """Run a TURN server on loopback."""
    settings = settings.replace("SECRET", SECRET)
    settings = re.sub(r"allowed-peer-ip=.*", "allowed-peer-ip=127.0.0.1", settings)
    (folder / "turnserver.conf").write_text(settings)
    options = ["--listening-ip=127.0.0.1", "--relay-ip=127.0.0.1", "--allow-loopback-peers"]
    files = [f"--log-file={folder}/log", "--simple-log", f"--pidfile={folder}/pid"]
    command = ["turnserver", "-c", f"{folder}/turnserver.conf", f"--listening-port={port}"]
    with subprocess.Popen([*command, *options, *files, f"--db={folder}/db"]) as process:
        try:
            wait_for_port(port)
            yield
        finally:
            process.terminate()


def wait_for_port(port: int) -> None:
    """Wait until something listens. Raises ``ConnectionRefusedError``."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), START_S).close()
            return
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def client_with(servers: list[dict[str, Any]]) -> Client:
    return Client(ice_servers=[RTCIceServer(**server) for server in servers])


@asynccontextmanager
async def closing(sessions: Sessions, client: Client) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        stack.push_async_callback(client.close)
        stack.push_async_callback(sessions.close_all, "the test is over")
        yield
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("kind", KINDS)
async def test_video_comes_through_the_server_from_a_client_that_has_no_other_way(
    kind: str, transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    settings, config = read_page(kind)
    config = at(config, port, transport)
    if kind == "expiring":
        monkeypatch.setenv("RAYLENS_TURN_SECRET", SECRET)
    with coturn(settings, tmp_path, port):
        sessions = Sessions("here", WebRtcConfig(), LOOPBACK)
        client = client_with(ice_servers_json(config, "camera", time.time()))
        async with closing(sessions, client):
            offer = await client.offer(addresses=())
            assert set(re.findall(r"typ (\w+)", offer)) == {"relay"}
            _, answer = await sessions.open(offer, "offer", {}, "me", Marker)
            await client.accept(answer)
            await client.wait_connected()
            await client.wait_annotated()


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_video_comes_through_the_server_to_a_replica_that_has_no_other_way(
    transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    settings, config = read_page("expiring")
    config = at(config, port, transport)
    monkeypatch.setenv("RAYLENS_TURN_SECRET", SECRET)
    with coturn(settings, tmp_path, port):
        sessions, client = Sessions("here", config, LOOPBACK), Client()
        async with closing(sessions, client):
            _, answer = await sessions.open(await client.offer(), "offer", {}, "me", Marker)
            relayed = re.sub(r"a=candidate:.* typ host\r\n", "", answer)
            assert set(re.findall(r"typ (\w+)", relayed)) == {"relay"}
            await client.accept(relayed)
            await client.wait_connected()
            await client.wait_annotated()


async def test_an_expired_credential_gives_no_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    settings, config = read_page("expiring")
    config = at(config, port, "udp")
    monkeypatch.setenv("RAYLENS_TURN_SECRET", SECRET)
    long_ago = time.time() - 2 * config.turn_ttl_s
    with coturn(settings, tmp_path, port):
        client = client_with(ice_servers_json(config, "camera", long_ago))
        assert "typ relay" not in await client.offer()
        await client.close()
