"""What is known of the deployments between two questions to Serve's controller."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field

import pytest
from ray.serve.schema import (
    DeploymentStatus,
    DeploymentStatusOverview,
    DeploymentStatusTrigger,
    ReplicaState,
)

from deployments.deployment_states import (
    PATIENCE_S,
    STATUS_TTL_S,
    DeploymentState,
    DeploymentStates,
)

HEALTHY, UPSCALING = DeploymentStatus.HEALTHY, DeploymentStatus.UPSCALING
RUNNING, STARTING, STOPPING = ReplicaState.RUNNING, ReplicaState.STARTING, ReplicaState.STOPPING


def overview(status: DeploymentStatus, **replicas: int) -> DeploymentStatusOverview:
    return DeploymentStatusOverview(
        status=status,
        status_trigger=DeploymentStatusTrigger.UNSPECIFIED,
        replica_states={ReplicaState(state): count for state, count in replicas.items()},
        message="",
    )


@dataclass
class Controller:
    """Answers with ``status`` for the deployment ``a``."""

    status: DeploymentStatusOverview = field(default_factory=lambda: overview(HEALTHY, RUNNING=1))
    error: Exception | None = None
    calls: int = 0
    go: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.go.set()

    def read(self) -> dict[str, DeploymentStatusOverview]:
        self.calls += 1
        self.go.wait()
        if self.error is not None:
            raise self.error
        return {"a": self.status}


@pytest.fixture
def controller() -> Controller:
    return Controller()


@pytest.fixture
def now() -> list[float]:
    return [100.0]


@pytest.fixture
def states(controller: Controller, now: list[float]) -> DeploymentStates:
    return DeploymentStates("raylens", controller.read, lambda: now[0])


async def test_the_controller_is_asked_once_a_second(
    states: DeploymentStates, controller: Controller, now: list[float]
) -> None:
    for _ in range(5):
        assert await states.current("a") == DeploymentState(1)
    assert controller.calls == 1
    controller.status = overview(HEALTHY, RUNNING=3)
    now[0] += STATUS_TTL_S + 0.1
    assert await states.current("a") == DeploymentState(3)


@pytest.mark.parametrize(("took_s", "ttl_s"), [(0.02, 1.0), (0.5, 10.0), (9.0, 30.0)])
async def test_a_slow_controller_is_asked_less_often(
    controller: Controller, now: list[float], took_s: float, ttl_s: float
) -> None:
    def read() -> dict[str, DeploymentStatusOverview]:
        now[0] += took_s
        return controller.read()

    states = DeploymentStates("raylens", read, lambda: now[0])
    await states.current("a")
    now[0] += ttl_s
    await states.current("a")
    assert controller.calls == 1
    now[0] += 0.01
    await states.current("a")
    assert controller.calls == 2


async def test_a_request_does_not_wait_for_the_controller(
    states: DeploymentStates, controller: Controller, now: list[float]
) -> None:
    assert await states.recent("a") == DeploymentState(1)  # the first one has to
    controller.status = overview(HEALTHY, RUNNING=2)
    now[0] += STATUS_TTL_S + 0.1
    assert await states.recent("a") == DeploymentState(1)
    while await states.recent("a") != DeploymentState(2):
        await asyncio.sleep(0.001)


async def test_nobody_waits_long_for_a_controller_that_hangs(
    states: DeploymentStates, controller: Controller, now: list[float]
) -> None:
    await states.current("a")
    now[0] += STATUS_TTL_S + 0.1
    controller.go.clear()
    try:
        first = asyncio.create_task(states.current("a"))
        while controller.calls < 2:
            await asyncio.sleep(0.001)
        now[0] += PATIENCE_S  # for whoever comes later
        async with asyncio.timeout(0.5 * PATIENCE_S):
            assert await states.current("a") == DeploymentState(1)
        assert await first == DeploymentState(1)
        assert controller.calls == 2
    finally:
        controller.go.set()


async def test_the_first_question_raises_what_goes_wrong(
    states: DeploymentStates, controller: Controller
) -> None:
    controller.error = ConnectionError("away")
    with pytest.raises(ConnectionError):
        await states.current("a")
    controller.error = None
    assert await states.current("a") == DeploymentState(1)


async def test_replicas_that_migrate_still_answer(
    states: DeploymentStates, controller: Controller
) -> None:
    controller.status = overview(HEALTHY, PENDING_MIGRATION=1, STARTING=1)
    assert await states.current("a") == DeploymentState(1)


async def test_a_controller_that_is_away_leaves_what_was_known(
    states: DeploymentStates, controller: Controller, now: list[float]
) -> None:
    await states.recent("a")
    controller.error = ConnectionError("away")
    now[0] += STATUS_TTL_S + 0.1
    await states.recent("a")
    while controller.calls < 2:
        await asyncio.sleep(0.001)
    assert await states.recent("a") == DeploymentState(1)


@pytest.mark.parametrize(
    ("status", "on_demand"),
    [
        (overview(HEALTHY), "scaled to zero"),
        (overview(DeploymentStatus.DOWNSCALING, STOPPING=1), "scaled to zero"),
        (overview(UPSCALING, STARTING=1), "loading for 0 s"),
        (overview(DeploymentStatus.UPDATING, STARTING=1), None),  # it is being deployed
        (overview(DeploymentStatus.UNHEALTHY, STARTING=1), None),
        (overview(DeploymentStatus.DEPLOY_FAILED), None),
    ],
    ids=lambda value: getattr(value, "status", value),
)
async def test_models_without_a_replica_are_told_apart(
    states: DeploymentStates,
    controller: Controller,
    status: DeploymentStatusOverview,
    on_demand: str | None,
) -> None:
    controller.status = status
    assert await states.current("a") == DeploymentState(0, on_demand)


async def test_the_seconds_of_loading_are_counted(
    states: DeploymentStates, controller: Controller, now: list[float]
) -> None:
    for _ in range(2):  # the second time begins anew
        controller.status = overview(UPSCALING, STARTING=1)
        now[0] += 10
        await states.current("a")
        now[0] += 7
        assert (await states.current("a")).on_demand == "loading for 7 s"
        controller.status = overview(HEALTHY, RUNNING=1)
        now[0] += 10
        assert await states.current("a") == DeploymentState(1)


async def test_an_unknown_deployment_has_no_replicas(states: DeploymentStates) -> None:
    assert await states.current("b") == DeploymentState()


async def test_a_replica_that_takes_other_settings_answers(controller: Controller) -> None:
    states = DeploymentStates("raylens", controller.read)
    controller.status = overview(DeploymentStatus.UPDATING, UPDATING=1)
    assert await states.current("a") == DeploymentState(1)
