"""The pipelines that clients have loaded, in an actor that all replicas of the ingress share.

Serve pickles this module by value; it is therefore small.
"""

from __future__ import annotations

import asyncio
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import DeploymentActorConfig

from raylens.api.pipelines import LoadedPipeline, LocalDefaults, PipelineDefaults
from raylens.core.errors import Overloaded

ACTOR_NAME = "pipelines"
"""Name of the actor among the deployment actors of the ingress."""
TIMEOUT_S = 5.0
RETRY_AFTER_S = 2.0


@ray.remote
class PipelineDefaultsActor:
    """Remembers the pipelines of clients, as long as it lives."""

    def __init__(self) -> None:
        from deployments.draining import leave_with_node

        self._leaving = asyncio.ensure_future(leave_with_node())
        self._defaults = LocalDefaults()

    async def get(self, client: str) -> LoadedPipeline | None:
        return await self._defaults.get(client)

    async def put(self, client: str, loaded: LoadedPipeline) -> None:
        await self._defaults.put(client, loaded)


class PipelineDefaultsClient(PipelineDefaults):
    """The actor, as the HTTP application sees it."""

    async def get(self, client: str) -> LoadedPipeline | None:
        loaded: LoadedPipeline | None = await self._call("get", client)
        return loaded

    async def put(self, client: str, loaded: LoadedPipeline) -> None:
        await self._call("put", client, loaded)

    async def _call(self, method: str, *arguments: Any) -> Any:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                # Not kept: a handle doesn't follow an actor that was started anew.
                actor = await asyncio.to_thread(serve.get_deployment_actor, ACTOR_NAME)
                return await getattr(actor, method).remote(*arguments)
        except (TimeoutError, ValueError, RayError) as error:
            message = "the pipelines that clients have loaded can't be reached"
            raise Overloaded(message, None, retry_after=RETRY_AFTER_S) from error


def pipeline_defaults_actor_config() -> DeploymentActorConfig:
    return DeploymentActorConfig(
        name=ACTOR_NAME,
        actor_class=PipelineDefaultsActor,
        init_kwargs={},
        actor_options={"num_cpus": 0, "max_concurrency": 256},
    )
