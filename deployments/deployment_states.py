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
MAX_STATUS_TTL_S = 30.0
REST = 20
"""A replica waits so many times as long as the controller took for its last answer, since hundreds
may share it."""
PATIENCE_S = 1.0
"""How long anybody waits for the controller, if an older state is known."""
ReadStatuses = Callable[[], dict[str, DeploymentStatusOverview]]
_ANSWERING = (ReplicaState.RUNNING, ReplicaState.UPDATING, ReplicaState.PENDING_MIGRATION)
_ON_DEMAND = (DeploymentStatus.HEALTHY, DeploymentStatus.UPSCALING, DeploymentStatus.DOWNSCALING)


@dataclass(frozen=True)
class DeploymentState:
    running: int = 0
    """Replicas that answer."""
    on_demand: str | None = None
    """If none runs because the deployment was scaled to zero: that, or how long the first one has
    been loading. A request waits for it."""


class DeploymentStates:
    """Asks the controller at most once in ``STATUS_TTL_S`` seconds, or less often if it is slow."""

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
        self._ttl_s = STATUS_TTL_S
        self._reading: asyncio.Task[None] | None = None
        self._reading_since = -math.inf

    async def current(self, name: str) -> DeploymentState:
        """Return the state of a deployment, which is at most ``STATUS_TTL_S`` old, or
        ``MAX_STATUS_TTL_S`` if the controller is slow.

        While the controller is away, the last known state counts, after ``PATIENCE_S``. Raises what
        asking it for the first time raises.
        """
        if self._is_old:
            reading = self._read_soon()
            patience = max(0.0, self._reading_since + PATIENCE_S - self._clock())
            await asyncio.wait([reading], timeout=patience if self._states else None)
            if reading.done() and not self._states:
                reading.result()
        return self._states.get(name, DeploymentState())

    async def recent(self, name: str) -> DeploymentState:
        """Return what is known of a deployment. If it is old, it is renewed in the background: a
        request doesn't wait for that."""
        if not self._states:
            return await self.current(name)
        if self._is_old:
            self._read_soon()
        return self._states.get(name, DeploymentState())

    @property
    def _is_old(self) -> bool:
        return self._clock() - self._read_at > self._ttl_s

    def _read_soon(self) -> asyncio.Task[None]:
        """Return the task that asks the controller; there is one at a time."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read())
            self._reading_since = self._clock()
        return self._reading

    async def _read(self) -> None:
        try:
            statuses = await asyncio.to_thread(self._read_statuses)
        except Exception as error:
            if not self._states:
                raise
            logger.warning("the state of the deployments can't be read: %s", error)
        else:
            self._states = {key: self._judge(key, status) for key, status in statuses.items()}
            self._read_at = self._clock()
            took_s = self._read_at - self._reading_since
            self._ttl_s = min(max(STATUS_TTL_S, REST * took_s), MAX_STATUS_TTL_S)

    def _ask_controller(self) -> dict[str, DeploymentStatusOverview]:
        return serve.status().applications[self._application].deployments

    def _judge(self, name: str, status: DeploymentStatusOverview) -> DeploymentState:
        replicas = status.replica_states
        # Replicas that take other settings answer meanwhile, and those on a node that is drained
        # until others have taken their places.
        running = sum(replicas.get(state, 0) for state in _ANSWERING)
        # While an application is deployed, or after a replica has failed, the status is another.
        if running or status.status not in _ON_DEMAND:
            self._loading_since.pop(name, None)
            return DeploymentState(running)
        if not replicas.get(ReplicaState.STARTING, 0):
            self._loading_since.pop(name, None)
            return DeploymentState(0, "scaled to zero")
        seconds = self._clock() - self._loading_since.setdefault(name, self._clock())
        return DeploymentState(0, f"loading for {int(seconds)} s")
