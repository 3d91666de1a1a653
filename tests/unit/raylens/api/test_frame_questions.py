"""Questions about frames are requests as any other: with limits, keys, logs and metrics."""

from __future__ import annotations

import asyncio
from typing import Any

import cv2
import numpy as np
import pytest

from raylens.api.access_log import AccessRecord, RequestMetrics
from raylens.api.app import create_app
from raylens.api.frame_questions import FrameQuestions
from raylens.api.session_requests import KEY_CHECK_S
from raylens.api.shared import Shared
from raylens.core.config import AppConfig
from raylens.core.errors import PermissionDenied, TooManyRequests, UnsupportedTask
from raylens.core.key_source import KeySource
from raylens.core.keys import Scope
from raylens.core.live_settings import live_view
from raylens.core.types import Caption, Chat, Detect, Query, Timings, VideoPart
from raylens.realtime.frames import Frame
from raylens.realtime.ports import SessionClient
from raylens.realtime.settings import MoondreamConfig
from testing.virtual_time import VirtualTimePolicy
from tests.unit.raylens.api.conftest import CONFIG, FakeService
from tests.unit.raylens.api.test_frame_socket import keyed, with_settings

ROUTE = "/api/v1/webrtc"


@pytest.fixture
def event_loop_policy() -> VirtualTimePolicy:
    return VirtualTimePolicy()


class Metrics(RequestMetrics):
    def __init__(self) -> None:
        self.records: list[AccessRecord] = []

    def record(self, record: AccessRecord) -> None:
        self.records.append(record)


@pytest.fixture
def service() -> FakeService:
    tasks = ("caption", "query", "detect", "point", "chat")
    return FakeService(tasks={"smolvlm": tasks}, timings=Timings(0.001, 0.002, 0.003, 0.004))


def make_questions(
    service: FakeService, config: AppConfig = CONFIG, **client: Any
) -> tuple[FrameQuestions, Metrics]:
    shared = Shared(config)
    create_app(service, config, shared=shared)
    metrics = Metrics()
    keys = KeySource(live_view(lambda: shared.config))
    who = SessionClient(**{"name": "192.0.2.1", "address": "192.0.2.1", **client})
    return FrameQuestions(shared, metrics, keys, who, ROUTE), metrics


def frame(number: int = 0) -> Frame:
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:, :32] = (220, 40, 40)
    return Frame(pixels, number, number / 4, 100.0)


def settings(**values: Any) -> MoondreamConfig:
    return MoondreamConfig.model_validate(values)


async def test_a_frame_becomes_a_request(service: FakeService) -> None:
    questions, metrics = make_questions(service)
    answer = await questions([frame()], settings(feature="detect", detect_object="cup"))
    assert len(answer.result.regions) == 2
    assert answer.model == "smolvlm"
    assert answer.timings["prefill_ms"] == 3.0
    (request,) = service.requests
    assert request.task == Detect("cup", 10)
    assert request.client == "192.0.2.1"
    assert request.sampling.temperature == 0.5
    (data,) = service.pictures
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    assert decoded.shape == (48, 64, 3)
    assert np.abs(decoded[24, 10].astype(int) - (40, 40, 220)).max() < 8  # OpenCV's order
    (record,) = metrics.records
    assert (record.method, record.route, record.status) == ("WEBRTC", ROUTE, 200)
    assert (record.model, record.task, record.client) == ("smolvlm", "detect", "192.0.2.1")
    assert (record.prompt_tokens, record.completion_tokens) == (7, 3)


async def test_what_preprocessing_warns_of_is_told(service: FakeService) -> None:
    service.warnings = ("the denoiser failed",)
    questions, _ = make_questions(service)
    answer = await questions([frame()], settings(feature="caption"))
    assert answer.warnings == ["the denoiser failed"]


async def test_texts_are_joined(service: FakeService) -> None:
    questions, _ = make_questions(service)
    answer = await questions([frame()], settings(feature="query", question="How many?"))
    assert answer.result.text == "two red circles"
    assert service.requests[0].task == Query("How many?")
    await questions([frame()], settings(feature="caption", model="small"))
    assert service.requests[1].task == Caption()


async def test_several_frames_are_a_video(service: FakeService) -> None:
    questions, _ = make_questions(service)
    frames = [frame(number) for number in (2, 4, 6)]
    await questions(frames, settings(feature="query", question="What happens?", frames=3))
    task = service.requests[0].task
    assert isinstance(task, Chat)
    assert task.messages[0].parts[0] == VideoPart((0, 1, 2), timestamps=(0.0, 0.5, 1.0))
    assert len(service.pictures) == 3


async def test_a_model_that_cant_do_it_says_so(service: FakeService) -> None:
    questions, metrics = make_questions(service)
    with pytest.raises(UnsupportedTask, match="other"):
        await questions([frame()], settings(feature="detect", model="other"))
    assert metrics.records[0].status == 400


async def test_questions_count_towards_the_limits_of_their_client(service: FakeService) -> None:
    limited = with_settings(client_limits={"requests_per_minute": 1})
    questions, metrics = make_questions(service, limited)
    await questions([frame()], settings(feature="caption"))
    with pytest.raises(TooManyRequests, match="1 requests a minute"):
        await questions([frame()], settings(feature="caption"))
    assert [record.status for record in metrics.records] == [200, 429]


async def test_a_key_that_is_taken_away_ends_the_questions(service: FakeService) -> None:
    config = with_settings(**keyed("camera"))
    questions, metrics = make_questions(service, config, name="camera", key="camera")
    denied: list[bool] = []
    questions.on_denied = lambda: denied.append(True)
    await questions([frame()], settings(feature="caption"))
    assert metrics.records[0].key == "camera"
    assert denied == []
    questions.shared.configure(with_settings(**keyed("other")))
    with pytest.raises(PermissionDenied, match="'camera' is no longer valid"):
        await questions([frame()], settings(feature="caption"))
    assert len(service.requests) == 1
    assert denied == [True]


async def test_a_session_without_a_key_ends_once_keys_are_needed(service: FakeService) -> None:
    questions, _ = make_questions(service)
    await questions([frame()], settings(feature="caption"))
    questions.shared.configure(with_settings(**keyed("camera")))
    with pytest.raises(PermissionDenied):
        await questions([frame()], settings(feature="caption"))


async def test_a_key_without_the_scope_ends_the_questions(service: FakeService) -> None:
    config = with_settings(**keyed("camera"))
    questions, _ = make_questions(service, config, name="camera", key="camera")
    await questions([frame()], settings(feature="caption"))
    (key,) = keyed("camera")["auth"]["keys"]
    narrowed = with_settings(auth={"keys": [{**key, "scopes": ["jobs"]}]})
    questions.shared.configure(narrowed)
    with pytest.raises(PermissionDenied):
        await questions([frame()], settings(feature="caption"))
    questions.scope = Scope.JOBS  # as a watch, which is a job
    await questions([frame()], settings(feature="caption"))


@pytest.mark.parametrize("now", ["keys", "other keys"])
async def test_the_key_of_a_session_that_asks_nothing_is_looked_at_now_and_then(
    service: FakeService, now: str
) -> None:
    config = CONFIG if now == "keys" else with_settings(**keyed("camera"))
    key = None if now == "keys" else "camera"
    questions, metrics = make_questions(service, config, name="camera", key=key)
    denied = asyncio.Event()
    questions.on_denied = denied.set
    watching = asyncio.create_task(questions.watch_key())
    await asyncio.sleep(100)
    assert not denied.is_set()
    questions.shared.configure(with_settings(**keyed("other")))
    async with asyncio.timeout(KEY_CHECK_S):
        await denied.wait()
    denied.clear()  # as if the session could not end yet
    async with asyncio.timeout(2 * KEY_CHECK_S):
        await denied.wait()
    watching.cancel()
    assert metrics.records == []  # nothing was asked
