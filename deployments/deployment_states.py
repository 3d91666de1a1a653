"""The state of the application's deployments, as Serve's controller reports it."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from ray import serve
from ray.serve.schema import DeploymentStatus, DeploymentStatusOverview, ReplicaState

logger = logging.getLogger(__name__)

STATUS_TTL_S = 1.0
ReadStatuses = Callable[[], dict[str, DeploymentStatusOverview]]
_ON_DEMAND = (DeploymentStatus.HEALTHY, DeploymentStatus.UPSCALING, DeploymentStatus.DOWNSCALING)


@dataclass(frozen=True)
class DeploymentState:
    running: int = 0
    """Replicas that answer."""
    on_demand: str | None = None
    """If none runs because the deployment was scaled to zero: that, or how long the first one has
    been loading. A request waits for it."""


class DeploymentStates:
    """Asks the controller at most once in ``STATUS_TTL_S`` seconds."""

    def __init__(
        self,
        application: str,
        read_statuses: ReadStatuses | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._application = application
        self._read_statuses = read_statuses or self._ask_controller
        self._clock = clock
        self._states: dict[str, DeploymentState] = {}
        self._loading_since: dict[str, float] = {}
        self._read_at = -math.inf
        self._lock = asyncio.Lock()
        self._renewal: asyncio.Task[None] | None = None

    async def current(self, name: str) -> DeploymentState:
        """Return the state of a deployment, which is at most ``STATUS_TTL_S`` old."""
        async with self._lock:
            if self._clock() - self._read_at > STATUS_TTL_S:
                statuses = await asyncio.to_thread(self._read_statuses)
                self._states = {
                    name: self._judge(name, status) for name, status in statuses.items()
                }
                self._read_at = self._clock()
            return self._states.get(name, DeploymentState())

    async def recent(self, name: str) -> DeploymentState:
        """Return what is known of a deployment. If it is old, it is renewed in the background: a
        request doesn't wait for that."""
        if self._read_at == -math.inf:
            return await self.current(name)
        if self._clock() - self._read_at > STATUS_TTL_S and not self._lock.locked():
            self._renewal = asyncio.create_task(self._renew(name))
        return self._states.get(name, DeploymentState())

    async def _renew(self, name: str) -> None:
        try:
            await self.current(name)
        except Exception as error:  # the next request tries again
            logger.warning("the state of the deployments can't be read: %s", error)

    def _ask_controller(self) -> dict[str, DeploymentStatusOverview]:
        return serve.status().applications[self._application].deployments

    def _judge(self, name: str, status: DeploymentStatusOverview) -> DeploymentState:
        replicas = status.replica_states
        running = replicas.get(ReplicaState.RUNNING, 0)
        # While an application is deployed, or after a replica has failed, the status is another.
        if running or status.status not in _ON_DEMAND:
            self._loading_since.pop(name, None)
            return DeploymentState(running)
        if not replicas.get(ReplicaState.STARTING, 0):
            self._loading_since.pop(name, None)
            return DeploymentState(0, "scaled to zero")
        seconds = self._clock() - self._loading_since.setdefault(name, self._clock())
        return DeploymentState(0, f"loading for {int(seconds)} s")
