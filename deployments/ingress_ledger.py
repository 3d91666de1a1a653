"""The ledger of clients' limits, for deployments other than the ingress, whose actor it is."""

from __future__ import annotations

import asyncio

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from raylens.core.leases import RemoteLedger
from raylens.core.ledger import Grant

INGRESS = "Ingress"
TIMEOUT_S = 2.0


class IngressLedger(RemoteLedger):
    """Asks a replica of the ingress, which asks the actor."""

    def __init__(self, handle: DeploymentHandle | None = None) -> None:
        """``handle`` is the ingress's; None means that of this replica's application."""
        self._handle = handle

    async def call(self, method: str, *arguments: object) -> Grant:
        try:
            if self._handle is None:
                application = serve.get_replica_context().app_name
                self._handle = serve.get_deployment_handle(INGRESS, application)
            async with asyncio.timeout(TIMEOUT_S):
                grant: Grant = await self._handle.ledger.remote(method, *arguments)
                return grant
        except (TimeoutError, RayError, RayServeException) as error:
            raise ConnectionError(type(error).__name__) from error
