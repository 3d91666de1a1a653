"""Hands over the jobs of an old queue in an update, before Serve kills its actor."""

from __future__ import annotations

import asyncio
import logging

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve._private.constants import SERVE_NAMESPACE

from deployments.draining import queue_actor_names
from deployments.job_client import find_queue_actor

logger = logging.getLogger(__name__)

PAUSE_S = 60.0
"""How long an old queue runs no jobs. Serve kills it when the last old replica of the ingress has
ended, which may take a while after the first one."""
TIMEOUT_S = 8.0
"""An attempt that doesn't stop when it is canceled is abandoned after 5 s."""


async def hand_over_jobs() -> None:
    """Let another queue go on with the jobs of this replica's queue, if there is another one.

    Call this at the end of a replica of the ingress. Serve keeps an actor of a deployment as long
    as a replica of its version lives. Without another queue this replica's one goes on: perhaps
    only the number of replicas is reduced. If this fails, the jobs wait until their leases expire.
    """
    context = serve.get_replica_context()
    try:
        async with asyncio.timeout(TIMEOUT_S):
            others = await asyncio.to_thread(
                queue_actor_names, context.app_name, context.code_version or ""
            )
            if others:
                actor = await asyncio.to_thread(find_queue_actor)
                await actor.hand_over.remote(PAUSE_S)
                for name in others:  # which would look at the store within 5 s
                    other = await asyncio.to_thread(ray.get_actor, name, SERVE_NAMESPACE)
                    other.wake.remote()
                logger.info("the running jobs are handed over")
    except (RayError, TimeoutError, ValueError) as error:
        logger.warning("the running jobs wait for their leases: %s", error or type(error).__name__)
