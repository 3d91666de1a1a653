"""The sessions of a process: limits, ends, and nothing left behind."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import threading
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from raylens.core.errors import InvalidRequest, Overloaded, TooManyRequests, UnknownSession
from raylens.core.webrtc_config import WebRtcConfig
from raylens.realtime.webrtc.peer import Status
from raylens.realtime.webrtc.sessions import REMEMBERED, Sessions
from testing.webrtc_client import LOOPBACK, Client, wait_until
from tests.unit.raylens.realtime.webrtc.processors import Marker

OFFER: Mapping[str, Any] = {
    "kind": "offer",
    "parameters": {},
    "open_processor": Marker,
}


def make_sessions(**settings: Any) -> Sessions:
    return Sessions("replica7", WebRtcConfig(**settings), LOOPBACK)


@pytest.fixture
async def clients() -> AsyncIterator[list[Client]]:
    clients: list[Client] = []
    yield clients
    await asyncio.gather(*(client.close() for client in clients))


async def open_session(
    sessions: Sessions, clients: list[Client], name: str = "me", connects: bool = False
) -> str:
    client = Client()
    clients.append(client)
    session_id, answer = await sessions.open(await client.offer(), "offer", {}, name, Marker)
    if connects:
        await client.accept(answer)
        await client.wait_connected()
    return session_id


async def test_a_sessions_id_names_its_process(clients: list[Client]) -> None:
    sessions = make_sessions()
    first = await open_session(sessions, clients)
    second = await open_session(sessions, clients)
    assert re.fullmatch(r"replica7-[A-Za-z0-9_-]{16}", first)
    assert first != second
    assert [state.id for state in sessions.states] == [first, second]
    await sessions.close_all("the test is over")


async def test_a_session_belongs_to_its_client(clients: list[Client]) -> None:
    sessions = make_sessions()
    session_id = await open_session(sessions, clients, "me")
    assert sessions.find(session_id, "me").id == session_id
    for wrong_id, name in ((session_id, "you"), ("replica7-x", "me")):
        with pytest.raises(UnknownSession, match="there is no session"):
            sessions.find(wrong_id, name)
        with pytest.raises(UnknownSession):
            await sessions.close(wrong_id, name, "theft")
    await sessions.close_all("the test is over")


async def test_an_ended_session_says_why(clients: list[Client]) -> None:
    sessions = make_sessions()
    session_id = await open_session(sessions, clients)
    await sessions.close(session_id, "me", "the client asked for it")
    with pytest.raises(UnknownSession, match=f"{session_id} has ended: the client asked for it"):
        sessions.find(session_id, "me")
    state = sessions.state(session_id, "me")
    assert (state.status, state.reason) == (Status.ENDED, "the client asked for it")
    with pytest.raises(UnknownSession, match="there is no session"):
        sessions.state(session_id, "you")
    assert sessions.states == []


async def test_a_client_and_all_clients_have_limits(clients: list[Client]) -> None:
    sessions = make_sessions(max_sessions=3, max_sessions_per_client=2)
    first = await open_session(sessions, clients, "me")
    await open_session(sessions, clients, "me")
    with pytest.raises(TooManyRequests, match="2 WebRTC sessions of this client") as caught:
        await open_session(sessions, clients, "me")
    assert caught.value.limit == 2
    await open_session(sessions, clients, "you")
    with pytest.raises(Overloaded, match="3 WebRTC sessions are open") as refused:
        await open_session(sessions, clients, "they")
    assert refused.value.retry_after
    await sessions.close(first, "me", "room for another")
    await open_session(sessions, clients, "they")
    await sessions.close_all("the test is over")


async def test_concurrent_offers_keep_the_limit(clients: list[Client]) -> None:
    sessions = make_sessions(max_sessions_per_client=2)
    opened = await asyncio.gather(
        *(open_session(sessions, clients) for _ in range(5)), return_exceptions=True
    )
    assert sum(isinstance(result, str) for result in opened) == 2
    assert sum(isinstance(result, TooManyRequests) for result in opened) == 3
    await sessions.close_all("the test is over")


async def test_a_refused_offer_takes_no_place() -> None:
    sessions = make_sessions(max_sessions=1)
    for _ in range(3):
        with pytest.raises(InvalidRequest):
            await sessions.open("nonsense", "offer", {}, "me", Marker)
    assert sessions.states == []


async def test_draining_tells_every_client_and_opens_no_more(clients: list[Client]) -> None:
    sessions = make_sessions()
    for name in ("me", "you"):
        await open_session(sessions, clients, name, connects=True)
    await sessions.close_all("the server is updated")
    for client in clients:
        await client.wait_received("parameters")
        (event,) = client.received("parameters")
        assert event == {
            "type": "stream_stopped",
            "error_message": "the server is updated",
            "retry_after": 1.0,
        }
    assert sessions.states == []
    with pytest.raises(Overloaded, match="no new sessions: the server is updated"):
        await open_session(sessions, clients)


async def test_a_session_that_never_connects_expires(clients: list[Client]) -> None:
    sessions = make_sessions(connect_timeout_s=0.05)
    session_id = await open_session(sessions, clients)
    await wait_until(lambda: not sessions.states)
    assert "no network path (ICE)" in sessions.state(session_id, "me").reason


async def test_only_the_last_ended_sessions_are_remembered() -> None:
    sessions = make_sessions()
    for _ in range(REMEMBERED + 10):
        with pytest.raises(InvalidRequest):
            await sessions.open("nonsense", "offer", {}, "me", Marker)
    assert len(sessions._ended) == REMEMBERED


def descriptors() -> dict[str, str]:
    """Return this process's open files and sockets."""
    opened = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            opened[name] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # that of the folder itself
            continue
    return {name: target for name, target in opened.items() if not target.endswith("/fd")}


def other_threads() -> set[str]:
    """Return the threads beside those of the event loop's executor, which are kept for reuse."""
    names = {thread.name for thread in threading.enumerate()}
    return {name for name in names if not name.startswith("asyncio_")}


async def run_sessions(sessions: Sessions, count: int, ending: str) -> None:
    """Open sessions at once, let video flow, and end them."""
    clients = [Client() for _ in range(count)]
    offers = [await client.offer() for client in clients]
    opened = [await sessions.open(offer, "offer", {}, "me", Marker) for offer in offers]
    if ending != "unconnected":
        for client, (_, answer) in zip(clients, opened, strict=True):
            await client.accept(answer)
        for client in clients:
            await client.wait_connected()
            await client.wait_annotated()
    if ending == "by client":
        await asyncio.gather(*(client.close() for client in clients))
        await wait_until(lambda: not sessions.states)
    await asyncio.gather(
        *(sessions.find(state.id, "me").close("done") for state in sessions.states)
    )
    await asyncio.gather(*(client.close() for client in clients))


async def test_nothing_is_left_behind(caplog: pytest.LogCaptureFixture) -> None:
    sessions = make_sessions(max_sessions_per_client=16)
    await run_sessions(sessions, 1, "by server")
    gc.collect()
    before = descriptors(), other_threads(), asyncio.all_tasks()
    for count, ending in ((7, "by server"), (7, "by client"), (6, "unconnected")):
        await run_sessions(sessions, count, ending)
        assert sessions.states == []
    # aiortc's last tasks and transports end a few turns of the loop after their owners.
    await wait_until(lambda: asyncio.all_tasks() == before[2])
    await wait_until(lambda: descriptors() == before[0])
    assert other_threads() == before[1]
    gc.collect()
    left = [item for item in gc.get_objects() if type(item).__name__ in ("Peer", "VideoFrame")]
    assert left == []
    # aioice's check of consent may meet a socket that has just been closed.
    tasks = [record.getMessage() for record in caplog.records if record.name == "asyncio"]
    assert [task for task in tasks if "query_consent" not in task] == []
    assert "could not be closed" not in caplog.text
