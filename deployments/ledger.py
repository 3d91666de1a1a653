"""The ledger of clients' limits, in an actor that all replicas of the ingress share.

Serve pickles this module by value; it is therefore small.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import DeploymentActorConfig

from raylens.core.leases import RemoteLedger
from raylens.core.ledger import Budget, Grant, Ledger

ACTOR_NAME = "ledger"
"""Name of the actor among the deployment actors of the ingress."""
TIMEOUT_S = 1.0


@ray.remote
class LedgerActor:
    """Keeps the budgets of clients, as long as it lives. A new one begins with whole budgets."""

    def __init__(self) -> None:
        from deployments.draining import leave_with_node

        self._leaving = asyncio.ensure_future(leave_with_node())
        self._ledger = Ledger(time.monotonic)

    async def spend(self, budget: Budget, replica: str, debt: float, wanted: float) -> Grant:
        return self._ledger.spend(budget, replica, debt, wanted)

    async def hold(self, budget: Budget, replica: str, held: int, wanted: int) -> Grant:
        return self._ledger.hold(budget, replica, held, wanted)


class LedgerClient(RemoteLedger):
    """The actor, as a replica of the ingress sees it."""

    def __init__(self) -> None:
        self._actor: Any = None

    async def call(self, method: str, *arguments: Any) -> Grant:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                if self._actor is None:
                    self._actor = await asyncio.to_thread(serve.get_deployment_actor, ACTOR_NAME)
                grant: Grant = await getattr(self._actor, method).remote(*arguments)
                return grant
        except (TimeoutError, ValueError, RayError) as error:
            self._actor = None  # a handle doesn't follow an actor that was started anew
            raise ConnectionError(type(error).__name__) from error


def ledger_actor_config() -> DeploymentActorConfig:
    return DeploymentActorConfig(
        name=ACTOR_NAME,
        actor_class=LedgerActor,
        init_kwargs={},
        actor_options={"num_cpus": 0, "max_concurrency": 256},
    )
