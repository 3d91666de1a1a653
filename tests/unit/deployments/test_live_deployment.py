"""What a deployment does with the ``user_config`` that Serve passes."""

from __future__ import annotations

import asyncio
import logging

import pytest
from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException

from deployments.live_deployment import PATIENCE_S, LiveDeployment, Settings, read_settings
from testing.virtual_time import VirtualTimePolicy


@pytest.fixture
def event_loop_policy() -> VirtualTimePolicy:
    return VirtualTimePolicy()


class Deployment(LiveDeployment):
    def __init__(self) -> None:
        self.taken: list[Settings] = []

    async def configure(self, settings: Settings) -> None:
        if settings and "bad" in settings:
            raise ValueError("bad: unknown setting")
        self.taken.append(settings)


async def test_only_changed_settings_are_taken_even_none() -> None:
    deployment = Deployment()
    for settings in (None, {}, {"a": 1}, {"a": 1}, {"a": 2}, {}, None):
        await deployment.reconfigure(settings)
    assert deployment.taken == [{"a": 1}, {"a": 2}, None]


async def test_a_mistake_leaves_the_former_settings_in_force(
    caplog: pytest.LogCaptureFixture,
) -> None:
    deployment = Deployment()
    await deployment.reconfigure({"a": 1})
    with caplog.at_level(logging.ERROR):
        await deployment.reconfigure({"bad": 1})
    assert "the former settings stay in force: user_config: bad: unknown setting" in caplog.text
    await deployment.reconfigure({"a": 1})
    await deployment.reconfigure({"a": 2})
    assert deployment.taken == [{"a": 1}, {"a": 2}]


async def test_a_replica_does_not_start_with_a_mistake() -> None:
    with pytest.raises(ValueError, match="user_config: bad: unknown setting"):
        await Deployment().reconfigure({"bad": 1})


async def test_settings_are_read_once_that_is_possible() -> None:
    answers: list[Settings | Exception] = [RayActorError(), RayServeException("starting"), {"a": 1}]

    async def read() -> Settings:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert await read_settings(read) == {"a": 1}


async def test_without_an_answer_there_are_no_settings_in_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def read() -> Settings:
        await asyncio.sleep(10**6)
        return {"a": 1}

    assert await read_settings(read) is None
    assert asyncio.get_running_loop().time() >= PATIENCE_S
    assert "those of args are in force" in caplog.text
