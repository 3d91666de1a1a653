"""The state of the application's processes, as Serve's controller and the metrics tell it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from ray.exceptions import RayError
from ray.serve.context import _get_global_client
from ray.serve.schema import DeploymentStatus, ReplicaState

from deployments.shared_state import call_shared_state
from raylens.status.ports import DeploymentState, StatusSource
from raylens.status.report import Report

logger = logging.getLogger(__name__)

TIMEOUT_S = 3.0
TTL_S = 2.0
"""Age up to which the controller isn't asked again."""
_RUNNING = (ReplicaState.RUNNING, ReplicaState.UPDATING, ReplicaState.PENDING_MIGRATION)
_STARTING = (ReplicaState.STARTING, ReplicaState.RECOVERING)
Details = Mapping[str, Any]


class ServeStatusSource(StatusSource):
    """Asks the controller, and the shared state for the metrics. Each has ``TIMEOUT_S`` seconds."""

    def __init__(
        self,
        application: str,
        models: list[str],
        read_details: Callable[[], Details] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``read_details`` returns Serve's details of all applications, and may wait for them."""
        self._application = application
        self._models = models
        self._read_details = read_details or _ask_controller
        self._clock = clock
        self._reading: asyncio.Task[dict[str, DeploymentState]] | None = None
        self._read_at = 0.0
        self._dashboard: str | None = None

    async def deployments(self) -> dict[str, DeploymentState] | None:
        is_old = self._clock() - self._read_at > TTL_S
        if self._reading is None or (self._reading.done() and is_old):
            self._reading = asyncio.create_task(self._read())
            self._read_at = self._clock()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await asyncio.shield(self._reading)
        except Exception as error:
            logger.warning("the state of the deployments can't be read: %r", error)
            return None

    async def _read(self) -> dict[str, DeploymentState]:
        details = await asyncio.to_thread(self._read_details)
        deployments = details["applications"][self._application]["deployments"]
        return {name: _state(deployment, time.time()) for name, deployment in deployments.items()}

    async def report(self) -> Report | None:
        report: Report | None = await self._ask_actor("report", self._models)
        return report

    async def ray_dashboard(self) -> str | None:
        self._dashboard = self._dashboard or await self._ask_actor("ray_dashboard")
        return self._dashboard

    async def _ask_actor(self, method: str, *arguments: Any) -> Any:
        try:
            return await call_shared_state(method, *arguments, timeout_s=TIMEOUT_S)
        except (TimeoutError, ValueError, RayError) as error:
            logger.warning("the shared state doesn't answer %s: %r", method, error)
            return None


def _ask_controller() -> Details:
    details: Details = _get_global_client().get_serve_details()
    return details


def _state(details: Details, now: float) -> DeploymentState:
    """Read one deployment of Serve's details. ``now`` is in seconds since the epoch."""
    states = Counter(ReplicaState(replica["state"]) for replica in details["replicas"])
    begun = [
        replica["start_time_s"] for replica in details["replicas"] if replica["state"] in _STARTING
    ]
    return DeploymentState(
        status=DeploymentStatus(details["status"]).value,
        message=details["message"],
        target=details["target_num_replicas"],
        running=sum(states[state] for state in _RUNNING),
        starting=sum(states[state] for state in _STARTING),
        starting_s=round(max(0.0, now - min(begun)), 1) if begun else None,
        stopping=states[ReplicaState.STOPPING],
        resources=dict(details["required_resources"]),
    )
