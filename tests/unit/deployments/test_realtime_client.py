"""Calls of the replicas that hold sessions, which may be full, slow, or gone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from deployments.realtime_client import ATTEMPTS, CALL_S, START_S, RealtimeClient
from raylens.core.errors import Overloaded, TooManyRequests, UnknownSession
from raylens.core.webrtc_config import WebRtcConfig
from raylens.realtime.ports import SessionAnswer, SessionClient, SessionOffer
from testing.virtual_time import VirtualTimePolicy

CLIENT = SessionClient("camera", "camera", "192.0.2.1")
OFFER = SessionOffer("v=0", "offer")
ANSWER = SessionAnswer("v=0", "answer", "replica1-session")
SESSION = "replica1-session-1"
FULL = Overloaded("16 WebRTC sessions are open; the limit is 16", None, 16, 16, 5.0)


def task_error(cause: Exception) -> RayTaskError:
    return RayTaskError("offer", "Traceback", cause)


LOST = [
    ActorDiedError(),
    ActorUnavailableError("away", None),
    DeploymentUnavailableError(DeploymentID("Realtime", "raylens")),
    BackPressureError(num_queued_requests=9, max_queued_requests=9),
]


class Replicas:
    """The deployment's handle. Calls take ``seconds``, and then raise or return the next result."""

    def __init__(self, *results: Any, seconds: float = 0.0) -> None:
        self._results = list(results)
        self._seconds = seconds
        self.calls: list[tuple[str | None, str, tuple[Any, ...]]] = []
        """The replica that is asked for, the method, and its arguments."""
        self.canceled = 0

    def options(self, session_id: str) -> Handle:
        return Handle(self, session_id)

    def __getattr__(self, method: str) -> Any:
        return getattr(Handle(self, None), method)

    async def call(self, replica: str | None, method: str, *arguments: Any) -> Any:
        self.calls.append((replica, method, arguments))
        try:
            await asyncio.sleep(self._seconds)
        except asyncio.CancelledError:
            self.canceled += 1
            raise
        result = self._results.pop(0) if len(self._results) > 1 else self._results[0]
        if isinstance(result, Exception):
            raise result
        return result


class Handle:
    def __init__(self, replicas: Replicas, replica: str | None) -> None:
        self._replicas = replicas
        self._replica = replica

    def __getattr__(self, name: str) -> Method:
        return Method(lambda *arguments: self._replicas.call(self._replica, name, *arguments))


class Method:
    def __init__(self, call: Callable[..., Awaitable[Any]]) -> None:
        self.remote = call


def client_of(replicas: Replicas) -> RealtimeClient:
    return RealtimeClient(cast(DeploymentHandle, replicas), WebRtcConfig())


@pytest.fixture
def event_loop_policy() -> VirtualTimePolicy:
    return VirtualTimePolicy()


def now() -> float:
    return asyncio.get_running_loop().time()


CALLS_OF_A_SESSION: list[Callable[[RealtimeClient], Awaitable[Any]]] = [
    lambda client: client.add_candidates(SESSION, [None], CLIENT),
    lambda client: client.state(SESSION, CLIENT),
    lambda client: client.close(SESSION, CLIENT),
]


async def test_an_offer_goes_to_any_replica_and_the_rest_to_that_of_the_session() -> None:
    replicas = Replicas(ANSWER, None, {"status": "connected"}, None)
    client = client_of(replicas)
    assert await client.offer(OFFER, CLIENT) == ANSWER
    await client.add_candidates(SESSION, [None], CLIENT)
    assert await client.state(SESSION, CLIENT) == {"status": "connected"}
    await client.close(SESSION, CLIENT)
    assert replicas.calls == [
        (None, "offer", (OFFER, CLIENT)),
        ("replica1", "add_candidates", (SESSION, [None], CLIENT)),
        ("replica1", "state", (SESSION, CLIENT)),
        ("replica1", "close", (SESSION, CLIENT)),
    ]


async def test_an_offer_that_a_full_replica_refuses_is_made_to_another() -> None:
    replicas = Replicas(FULL, task_error(FULL), ANSWER)
    assert await client_of(replicas).offer(OFFER, CLIENT) == ANSWER
    assert len(replicas.calls) == 3


async def test_if_all_replicas_are_full_they_say_why() -> None:
    replicas = Replicas(task_error(FULL))
    with pytest.raises(Overloaded, match="16 WebRTC sessions are open") as caught:
        await client_of(replicas).offer(OFFER, CLIENT)
    assert (caught.value.limit, caught.value.retry_after) == (16, 5.0)
    assert len(replicas.calls) == ATTEMPTS


async def test_what_else_a_replica_refuses_is_refused_at_once() -> None:
    replicas = Replicas(task_error(TooManyRequests("4 sessions", None, 4, 4, 5.0)))
    with pytest.raises(TooManyRequests, match="4 sessions"):
        await client_of(replicas).offer(OFFER, CLIENT)
    assert len(replicas.calls) == 1


async def test_a_replica_may_start_for_an_offer() -> None:
    replicas = Replicas(ANSWER, seconds=START_S - 1)
    assert await client_of(replicas).offer(OFFER, CLIENT) == ANSWER


async def test_an_offer_that_no_replica_answers_ends_in_time() -> None:
    replicas = Replicas(ANSWER, seconds=3600)
    with pytest.raises(Overloaded, match="not available") as caught:
        await client_of(replicas).offer(OFFER, CLIENT)
    assert now() == START_S
    assert caught.value.retry_after == 5.0
    assert replicas.canceled == 1


async def test_full_replicas_that_are_slow_end_in_time_and_say_why() -> None:
    replicas = Replicas(task_error(FULL), seconds=START_S * 0.6)
    with pytest.raises(Overloaded, match="16 WebRTC sessions are open"):
        await client_of(replicas).offer(OFFER, CLIENT)
    assert now() == START_S


@pytest.mark.parametrize("error", LOST, ids=lambda error: type(error).__name__)
async def test_an_offer_survives_a_replica_that_is_lost(error: Exception) -> None:
    replicas = Replicas(error, ANSWER)
    assert await client_of(replicas).offer(OFFER, CLIENT) == ANSWER
    lost = Replicas(error)
    with pytest.raises(Overloaded, match="not available"):
        await client_of(lost).offer(OFFER, CLIENT)
    assert len(lost.calls) == ATTEMPTS


@pytest.mark.parametrize("call", CALLS_OF_A_SESSION)
async def test_a_session_whose_replica_doesnt_answer_is_gone(
    call: Callable[[RealtimeClient], Awaitable[Any]],
) -> None:
    replicas = Replicas(None, seconds=3600)
    with pytest.raises(UnknownSession, match=f"{SESSION}' doesn't answer: open another session"):
        await call(client_of(replicas))
    assert now() == CALL_S
    assert replicas.canceled == 1


@pytest.mark.parametrize("call", CALLS_OF_A_SESSION)
@pytest.mark.parametrize("error", LOST, ids=lambda error: type(error).__name__)
async def test_a_session_whose_replica_is_lost_may_be_asked_for_again(
    call: Callable[[RealtimeClient], Awaitable[Any]], error: Exception
) -> None:
    """Serve's router doesn't know yet. Soon another replica says that the session is gone."""
    with pytest.raises(Overloaded, match="not available") as caught:
        await call(client_of(Replicas(error)))
    assert caught.value.retry_after == 5.0
    gone = task_error(UnknownSession("the part of the server with session x has ended"))
    with pytest.raises(UnknownSession, match="has ended"):
        await call(client_of(Replicas(gone)))


async def test_a_defect_of_a_replica_is_none_of_the_client() -> None:
    with pytest.raises(RayTaskError):
        await client_of(Replicas(task_error(KeyError("x")))).state(SESSION, CLIENT)
