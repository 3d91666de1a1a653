"""Requests whose replica, or whose picture, is lost on the way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, nullcontext
from typing import Any, cast
from unittest.mock import MagicMock

import pytest
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    ObjectLostError,
    RayTaskError,
    TaskCancelledError,
)
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.schema import (
    DeploymentStatus,
    DeploymentStatusOverview,
    DeploymentStatusTrigger,
    ReplicaState,
)

from deployments.answer_spans import _RecordedAnswer
from deployments.deployment_states import DeploymentStates
from deployments.graph import Graph
from deployments.retries import MAX_ATTEMPTS, PAUSE_S
from deployments.spans import NS
from raylens.api.access_log import AccessRecord, RecordedService, current_record
from raylens.core.config import AppConfig
from raylens.core.errors import (
    InvalidRequest,
    ModelFailed,
    ModelNotLoaded,
    Overloaded,
)
from raylens.core.ports import VisionService
from raylens.core.recipe import Recipe
from raylens.core.types import Caller, Delta, FinishReason, PictureFile, Query, VisionRequest
from testing.virtual_time import VirtualTimePolicy

MODEL = "a"
PICTURE = PictureFile(b"picture", "image")
DELTA = Delta("text", 0, FinishReason.STOP)
OTHER = Delta("text", 1, FinishReason.STOP)
Step = Delta | BaseException | float


def task_error(cause: Exception) -> RayTaskError:
    return RayTaskError("generate", "Traceback", cause)


def upstream_error() -> RayServeException:
    """What Serve makes of an argument whose replica died."""
    error = RayServeException("an upstream actor died")
    error.__cause__ = ActorDiedError()
    return error


LOST_REPLICA = [ActorDiedError(), ActorUnavailableError("away", None)]
LOST_PICTURE = [
    task_error(ActorDiedError()),
    task_error(ActorUnavailableError("away", None)).as_instanceof_cause(),
    task_error(ObjectLostError("00", None, "")),
    upstream_error(),
]


class Stream:
    """A streaming call that yields deltas, raises exceptions, and waits for seconds."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._deltas = self._play(steps)
        self.was_canceled = False

    async def _play(self, steps: Sequence[Step]) -> AsyncGenerator[Delta, None]:
        for step in steps:
            if isinstance(step, BaseException):
                raise step
            if isinstance(step, float):
                await asyncio.sleep(step)
            else:
                yield step

    def __aiter__(self) -> AsyncGenerator[Delta, None]:
        return self._deltas

    def __anext__(self) -> Awaitable[Delta]:
        return self._deltas.__anext__()

    def cancel(self) -> None:
        self.was_canceled = True


class Call:
    """A call of the preprocessor."""

    def __init__(self, result: Any) -> None:
        self._result = result

    def __await__(self) -> Any:
        return self._answer().__await__()

    async def _answer(self) -> Any:
        if isinstance(self._result, BaseException):
            raise self._result
        return self._result

    def cancel(self) -> None: ...


class Handle:
    """A handle whose calls end as the attempts say, one after the other."""

    def __init__(self, make: Callable[[Any], Any], attempts: Sequence[Any]) -> None:
        self._attempts = iter(attempts)
        self._make = make
        self.arguments: list[tuple[Any, ...]] = []
        self.calls: list[Any] = []

    def options(self, **_: Any) -> Handle:
        return self

    def __getattr__(self, method: str) -> Handle:
        return self

    def remote(self, *arguments: Any) -> Any:
        self.arguments.append(arguments)
        self.calls.append(self._make(next(self._attempts)))
        return self.calls[-1]


class Server:
    """A graph with ``running`` replicas of a model, whose calls end as ``attempts`` say."""

    def __init__(
        self, attempts: Sequence[Sequence[Step]], running: int = 2, previews: Sequence[Any] = ()
    ) -> None:
        self.model = Handle(Stream, attempts)
        results = previews or [f"processed {number}" for number in range(len(attempts))]
        self.preprocessor = Handle(Call, results)
        config = AppConfig.model_validate({"models": [{"name": MODEL, "family": "smolvlm"}]})
        overview = DeploymentStatusOverview(
            status=DeploymentStatus.HEALTHY,
            status_trigger=DeploymentStatusTrigger.UNSPECIFIED,
            replica_states={ReplicaState.RUNNING: running},
            message="",
        )
        states = DeploymentStates("raylens", lambda: {MODEL: overview})
        handles = cast(Any, self.preprocessor), cast(Any, {MODEL: self.model})
        self._graph = Graph(config, "raylens", *handles, states)

    async def ask(self, timeout_s: float = 10.0, stream: bool = True) -> list[Delta]:
        """Ask about a picture."""
        deadline = time.time() + timeout_s
        request = VisionRequest("id", MODEL, Query("what?"), deadline, stream=stream)
        service = cast(VisionService, RecordedService(self._graph))
        async with aclosing(service.generate(request, [PICTURE])) as deltas:
            return [delta async for delta in deltas]

    async def preview(self) -> Any:
        caller = Caller("id", time.time() + 10)
        return await self._graph.preprocess(PICTURE, Recipe(), caller)

    @property
    def attempts(self) -> int:
        return len(self.model.calls)


@pytest.fixture
def event_loop_policy() -> VirtualTimePolicy:
    return VirtualTimePolicy()


@pytest.mark.parametrize("loss", [*LOST_REPLICA, *LOST_PICTURE], ids=repr)
async def test_a_request_is_repeated_with_its_picture_processed_again(loss: Exception) -> None:
    server = Server([[loss], [DELTA]])
    assert await server.ask() == [DELTA]
    assert server.attempts == len(server.preprocessor.calls) == 2
    # The second attempt takes the second result: the first one may be lost.
    assert server.model.arguments[1][1:] == (server.preprocessor.calls[1],)
    assert server.model.calls[0].was_canceled


@pytest.mark.parametrize("loss", [LOST_REPLICA[0], LOST_PICTURE[0]], ids=repr)
async def test_a_request_that_kills_its_replicas_is_tried_three_times(loss: Exception) -> None:
    server = Server([[loss]] * 10)
    with pytest.raises(ModelNotLoaded) as caught:
        await server.ask()
    assert server.attempts == MAX_ATTEMPTS == 3
    assert caught.value.http_status == 503
    assert caught.value.retry_after is not None


async def test_a_stream_that_has_begun_is_not_repeated_but_parts_of_a_whole_answer_are() -> None:
    server = Server([[DELTA, ActorDiedError()], [DELTA]])
    with pytest.raises(ModelNotLoaded):
        await server.ask()
    assert server.attempts == 1
    # Of two answers, the first one was complete.
    server = Server([[DELTA, ActorDiedError()], [DELTA, OTHER]])
    assert await server.ask(stream=False) == [DELTA, OTHER]


@pytest.mark.parametrize("stream", [True, False])
async def test_the_first_token_has_come_before_a_whole_answer_is_passed_on(
    stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = asyncio.get_running_loop().time
    monkeypatch.setattr("raylens.api.access_log.time.perf_counter", now)
    monkeypatch.setattr("deployments.answer_spans.time.time_ns", lambda: int(now() * NS))
    span = MagicMock()
    recorded = _RecordedAnswer(span, 1)
    monkeypatch.setattr("deployments.graph.answer_span", lambda *_: nullcontext(recorded))
    monkeypatch.setattr(recorded, "call", lambda method, *arguments: method.remote(*arguments))
    record = AccessRecord("POST", "/", "")
    current_record.set(record)
    server = Server([[2.0, Delta("a"), 4.0, Delta("b"), DELTA]])
    await server.ask(stream=stream)
    assert record.first_token_s == pytest.approx(2.0)
    name, seconds = span.set_attribute.call_args_list[0].args
    assert name == "gen_ai.response.time_to_first_chunk"
    assert seconds == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (task_error(ValueError("a bug")), ModelFailed),
        (task_error(InvalidRequest("wrong", "image")), InvalidRequest),
        (BackPressureError(1, 1), Overloaded),
        (TaskCancelledError(), ModelNotLoaded),
        (RayServeException("not deployed"), ModelNotLoaded),
    ],
    ids=repr,
)
async def test_other_failures_are_not_repeated(
    failure: Exception, expected: type[Exception]
) -> None:
    server = Server([[failure], [DELTA]])
    with pytest.raises(expected):
        await server.ask()
    assert server.attempts == 1


async def test_without_another_replica_a_request_is_refused_so_that_a_fallback_may_answer() -> None:
    server = Server([[ActorDiedError()], [DELTA]], running=1)
    with pytest.raises(ModelNotLoaded):
        await server.ask()
    assert server.attempts == 1
    # If only the picture was lost, the model's replica is alive.
    server = Server([[task_error(ActorDiedError())], [DELTA]], running=1)
    assert await server.ask() == [DELTA]


async def test_no_attempt_begins_after_the_deadline() -> None:
    server = Server([[ActorDiedError()], [DELTA]])
    with pytest.raises(ModelNotLoaded):
        await server.ask(timeout_s=PAUSE_S / 2)
    assert server.attempts == 1


async def test_a_preview_is_repeated_too() -> None:
    server = Server([], previews=[ActorDiedError(), "processed"])
    assert await server.preview() == "processed"
    server = Server([], previews=[ActorDiedError()] * MAX_ATTEMPTS)
    with pytest.raises(ModelNotLoaded):
        await server.preview()
    server = Server([], previews=[task_error(ValueError("a bug")), "processed"])
    with pytest.raises(ModelFailed):
        await server.preview()
