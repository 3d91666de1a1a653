"""The state of the deployments, as Serve's controller tells it."""

from __future__ import annotations

import time
from typing import Any

import pytest
from ray.serve.schema import DeploymentStatus, ReplicaState

from deployments.status_source import ServeStatusSource
from raylens.status.ports import DeploymentState

AGES_S = (
    (ReplicaState.RUNNING, 900),
    (ReplicaState.STARTING, 20),
    (ReplicaState.STARTING, 60),
    (ReplicaState.STOPPING, 900),
    (ReplicaState.PENDING_MIGRATION, 900),
)


def details() -> dict[str, Any]:
    """Return what the controller tells of replicas of these ages."""
    now = time.time()
    deployment = {
        "status": DeploymentStatus.UPDATING,
        "message": "Updating",
        "target_num_replicas": 2,
        "required_resources": {"CPU": 1.0, "GPU": 0.25},
        "replicas": [{"state": state, "start_time_s": now - age_s} for state, age_s in AGES_S],
    }
    return {"applications": {"raylens": {"deployments": {"small": deployment}}, "other": {}}}


class FakeController:
    def __init__(self) -> None:
        self.calls = 0
        self.error: Exception | None = None

    def __call__(self) -> dict[str, Any]:
        self.calls += 1
        if self.error is not None:
            raise self.error
        return details()


async def test_replicas_are_counted_by_what_they_do() -> None:
    source = ServeStatusSource("raylens", ["small"], FakeController())
    deployments = await source.deployments()
    assert deployments is not None
    small = deployments["small"]
    assert small.starting_s == pytest.approx(60, abs=30)
    resources = {"CPU": 1.0, "GPU": 0.25}
    assert small == DeploymentState("UPDATING", "Updating", 2, 2, 2, small.starting_s, 1, resources)


async def test_the_controller_is_asked_seldom() -> None:
    now = 100.0
    controller = FakeController()
    source = ServeStatusSource("raylens", ["small"], controller, lambda: now)
    for _ in range(3):
        await source.deployments()
    assert controller.calls == 1
    now += 3
    await source.deployments()
    assert controller.calls == 2


async def test_nothing_is_known_while_the_controller_is_away_and_all_once_it_is_back() -> None:
    now = time.monotonic()
    controller = FakeController()
    controller.error = ConnectionError("no controller")
    source = ServeStatusSource("raylens", ["small"], controller, lambda: now)
    assert await source.deployments() is None
    controller.error = None
    now += 3
    assert await source.deployments() is not None
