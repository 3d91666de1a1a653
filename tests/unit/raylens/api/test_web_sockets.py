"""What happens to sessions while time passes: keys that are taken away, and drains."""

from __future__ import annotations

import asyncio

import pytest

from raylens.api.app import create_app
from raylens.api.frame_socket import PATH as FRAMES
from raylens.api.relay import PATH as RELAY
from raylens.api.session_requests import KEY_CHECK_S
from raylens.api.shared import Shared
from raylens.core.errors import Overloaded
from testing.asgi_socket import connected
from testing.virtual_time import VirtualTimePolicy
from tests.unit.raylens.api.conftest import PICTURE, FakeService
from tests.unit.raylens.api.test_frame_socket import (
    Drain,
    GatedService,
    ask,
    joined,
    keyed,
    receive_stop,
    with_settings,
)


@pytest.fixture
def event_loop_policy() -> VirtualTimePolicy:
    return VirtualTimePolicy()


@pytest.mark.parametrize("now", ["other keys", "no scope", "keys"])
async def test_the_key_of_a_session_that_asks_nothing_is_looked_at_now_and_then(
    service: FakeService, now: str
) -> None:
    config = with_settings() if now == "keys" else with_settings(**keyed("camera"))
    shared = Shared(config)
    app = create_app(service, config, shared=shared)
    async with connected(app, FRAMES, {"x-api-key": "key-of-camera"}) as socket:
        await asyncio.sleep(100)
        assert socket.received.empty()
        changed = keyed("camera" if now == "no scope" else "other")
        if now == "no scope":
            changed["auth"]["keys"][0]["scopes"] = ["jobs"]
        shared.configure(with_settings(**changed))
        began_at = asyncio.get_running_loop().time()
        error = await socket.receive()
        assert asyncio.get_running_loop().time() - began_at <= KEY_CHECK_S
        assert (error["done"], error["status"]) == (True, 403 if now == "no scope" else 401)
        assert await socket.receive_close() == 4000 + error["status"]


async def test_a_session_goes_on_if_its_key_is_still_there_or_keys_are_no_longer_needed(
    service: FakeService,
) -> None:
    config = with_settings(**keyed("camera"))
    shared = Shared(config)
    app = create_app(service, config, shared=shared)
    async with connected(app, FRAMES, {"x-api-key": "key-of-camera"}) as socket:
        for changed in (keyed("other", "camera"), {"auth": "none"}):
            shared.configure(with_settings(**changed))
            await asyncio.sleep(3 * KEY_CHECK_S)
            assert joined(await ask(socket)) == "two red circles"


async def test_an_answer_ends_with_the_key() -> None:
    service = GatedService(before_gate=1)
    config = with_settings(**keyed("camera"))
    shared = Shared(config)
    async with connected(
        create_app(service, config, shared=shared), FRAMES, {"x-api-key": "key-of-camera"}
    ) as socket:
        socket.send(PICTURE)
        assert (await socket.receive())["response"]
        shared.configure(with_settings(**keyed("other")))
        assert "unknown key" in (await socket.receive())["error"]
        assert await socket.receive_close() == 4401
    assert service.closed == 1


async def test_an_idle_relay_ends_with_its_key(service: FakeService) -> None:
    config = with_settings(**keyed("camera"))
    shared = Shared(config)
    app = create_app(service, config, shared=shared)
    async with connected(app, RELAY, {"x-api-key": "key-of-camera"}) as socket:
        await socket.receive()
        await asyncio.sleep(100)
        assert socket.received.empty()
        shared.configure(with_settings(**keyed("other")))
        assert "unknown key" in (await socket.receive())["error"]
        assert await socket.receive_close() == 4401


async def test_a_drain_doesnt_wait_for_room(service: FakeService) -> None:
    service.error = Overloaded("full", retry_after=30)
    drain = Drain()
    config = with_settings(defaults={"timeout_s": 60, "max_tokens": 5})
    app = create_app(service, config, shared=Shared(config, draining=drain))
    async with connected(app, FRAMES) as socket:
        socket.send(PICTURE)
        await asyncio.sleep(5)
        drain.begin()
        waiting = await socket.receive()
        assert (waiting["frame"], waiting["status"]) == (1, 503)
        await receive_stop(socket)
        assert asyncio.get_running_loop().time() < 10
    assert len(service.requests) == 1
