"""What the replicas of the ingress share and can do without: the pipelines that clients have
loaded, and the metrics of the last minutes. It is one actor, because each process takes 100 MB.

Serve pickles this module by value; it is therefore small.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import ray
from ray import serve
from ray.serve.config import DeploymentActorConfig

from raylens.api.pipelines import LoadedPipeline, LocalDefaults

if TYPE_CHECKING:
    from raylens.status.report import Report

ACTOR_NAME = "shared"
"""Name of the actor among the deployment actors of the ingress."""


@ray.remote
class SharedStateActor:
    """Keeps it as long as it lives. A new one begins with nothing."""

    def __init__(self) -> None:
        import httpx

        from deployments.draining import leave_with_node
        from deployments.metrics_sampler import MetricsSampler, node_addresses

        self._leaving = asyncio.ensure_future(leave_with_node())
        self._pipelines = LocalDefaults()
        application = serve.get_deployment_actor_context().app_name
        self._sampler = MetricsSampler(application, lambda: node_addresses(ray.nodes()))
        client = httpx.AsyncClient(trust_env=False)  # the nodes are behind no proxy
        self._sampling = asyncio.ensure_future(self._sampler.run(client))

    async def get_pipeline(self, client: str) -> LoadedPipeline | None:
        return await self._pipelines.get(client)

    async def put_pipeline(self, client: str, loaded: LoadedPipeline) -> None:
        await self._pipelines.put(client, loaded)

    async def report(self, models: list[str]) -> Report:
        """Return the figures of the last minutes."""
        return await self._sampler.report(models)

    async def ray_dashboard(self) -> str | None:
        """Return where Ray's dashboard listens."""
        from ray._private.worker import get_dashboard_url

        return get_dashboard_url() or None


async def call_shared_state(method: str, *arguments: Any, timeout_s: float) -> Any:
    """Call a method of the actor. Raises ``TimeoutError``, ``ValueError`` and ``RayError`` while it
    can't be reached."""
    async with asyncio.timeout(timeout_s):
        # Not kept: a handle doesn't follow an actor that was started anew.
        actor = await asyncio.to_thread(serve.get_deployment_actor, ACTOR_NAME)
        return await getattr(actor, method).remote(*arguments)


def shared_state_actor_config() -> DeploymentActorConfig:
    return DeploymentActorConfig(
        name=ACTOR_NAME,
        actor_class=SharedStateActor,
        init_kwargs={},
        actor_options={"num_cpus": 0, "max_concurrency": 256},
    )
