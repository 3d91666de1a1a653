"""The metrics of the last minutes, in an actor that all replicas of the ingress share.

Serve pickles this module by value; it is therefore small.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import ray
from ray import serve
from ray.serve.config import DeploymentActorConfig

if TYPE_CHECKING:
    from raylens.status.report import Report

ACTOR_NAME = "metrics"
"""Name of the actor among the deployment actors of the ingress."""


@ray.remote
class MetricsHistoryActor:
    """Reads the metrics of all nodes as long as it lives. A new one begins with no history."""

    def __init__(self) -> None:
        import httpx

        from deployments.draining import leave_with_node
        from deployments.metrics_sampler import MetricsSampler, node_addresses

        self._leaving = asyncio.ensure_future(leave_with_node())
        application = serve.get_deployment_actor_context().app_name
        self._sampler = MetricsSampler(application, lambda: node_addresses(ray.nodes()))
        client = httpx.AsyncClient(trust_env=False)  # the nodes are behind no proxy
        self._sampling = asyncio.ensure_future(self._sampler.run(client))

    async def report(self, models: list[str]) -> Report:
        return await self._sampler.report(models)

    async def ray_dashboard(self) -> str | None:
        """Return where Ray's dashboard listens."""
        from ray._private.worker import get_dashboard_url

        return get_dashboard_url() or None


def metrics_history_actor_config() -> DeploymentActorConfig:
    return DeploymentActorConfig(
        name=ACTOR_NAME,
        actor_class=MetricsHistoryActor,
        init_kwargs={},
        actor_options={"num_cpus": 0, "max_concurrency": 256},
    )
