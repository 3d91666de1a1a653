"""The actor that runs the job queue.

Serve starts it before the replicas of the ingress, and restarts it if it dies.

Serve pickles this module by value. It is therefore small, and the queue itself is in
:mod:`raylens.jobs.queue`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import ray
from ray import serve

from raylens.core.environment import load_config
from raylens.core.errors import Overloaded
from raylens.jobs.store import StoreUnavailable

if TYPE_CHECKING:
    from fastapi import FastAPI

    from raylens.core.config import AppConfig

logger = logging.getLogger("raylens.jobs.actor")

THREADS = 64
"""Threads for blocking calls."""
RETRY_S = 5.0
"""Seconds between two attempts to open a store that can't be reached."""
METHODS = frozenset(
    {
        "submit",
        "submit_all",
        "find_submitted",
        "get",
        "get_many",
        "list_jobs",
        "read_picture",
        "cancel",
        "remove",
        "requeue",
        "stats",
        "wait_for_changes",
        "deliveries",
        "redeliver",
        "add_file",
        "get_file",
        "keep_file",
        "read_file_part",
        "list_files",
        "remove_file",
    }
)
"""The methods of the queue that :meth:`JobQueueActor.call` may call."""


@ray.remote
class JobQueueActor:
    """Runs one :class:`raylens.jobs.queue.JobQueue` over the graph's handles.

    During an update, an old and a new actor run side by side until the old replicas of the ingress
    have ended; the store's leases and fences keep their work apart. Serve then kills the old one
    without notice. Therefore the replicas tell it before (:mod:`deployments.job_handover`), and
    whatever it still runs goes over to the new one.
    """

    def __init__(self, args: dict[str, Any]) -> None:
        """``args`` are those of :func:`deployments.app.build_app`."""
        import httpx

        from deployments.draining import leave_with_node
        from deployments.graph import Graph
        from deployments.job_metrics import PrometheusJobMetrics
        from deployments.tracing import trace_this_actor
        from deployments.watch_client import WatchClient
        from raylens.api.app import create_app
        from raylens.core.client_limits import NO_LIMITS
        from raylens.core.live_settings import LastResult, live_view
        from raylens.core.logs import configure_logging
        from raylens.jobs.factory import create_queue
        from raylens.jobs.priority import BackgroundService
        from raylens.jobs.types.openai_batch import OpenAIBatchJob
        from raylens.jobs.types.watch import WatchJob

        config, _ = load_config(args)
        self._given_config = self._config = config
        configure_logging(config.log_settings, "jobs")
        trace_this_actor("jobs")
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS))
        application = serve.get_deployment_actor_context().app_name

        def get_handle(name: str) -> Any:
            return serve.get_deployment_handle(name, app_name=application)

        models = {model.name: get_handle(model.name) for model in config.models}
        self._ingress = get_handle("Ingress")
        self._graph = Graph(config, application, get_handle("Preprocessor"), models)

        def make_app(config: AppConfig) -> FastAPI:
            # Whoever submitted a batch had a key, and was within limits.
            update = {"auth": "none", "client_limits": NO_LIMITS}
            open_config = config.model_copy(update=update)
            return create_app(BackgroundService(self._graph), open_config)

        apps = LastResult(make_app)

        def make_transport(client: str) -> httpx.AsyncBaseTransport:
            app = apps(self._config)
            return httpx.ASGITransport(app, raise_app_exceptions=False, client=(client, 0))

        live_config = live_view(lambda: self._config)
        batch_job = OpenAIBatchJob(make_transport, live_config)
        watch_job = WatchJob(WatchClient(get_handle("Realtime")))
        self._metrics = PrometheusJobMetrics()
        self._queue = create_queue(live_config, self._graph, self._metrics, [batch_job, watch_job])
        self._has_settings = False
        self._is_open = self._open()
        self._serving = asyncio.ensure_future(self._open_and_serve())
        self._serving.add_done_callback(_exit_process)
        self._leaving = asyncio.ensure_future(leave_with_node(self._release_jobs))

    def _open(self) -> bool:
        """Open the store. Return False if it can't be reached at the moment.

        Raises ``QueueStartupError`` if it can never be opened. Then the deployment fails to start.
        """
        # The constructor blocks the actor's event loop until the store is open, so opening it
        # needs another loop in another thread.
        with ThreadPoolExecutor(1) as thread:
            try:
                thread.submit(asyncio.run, self._queue.open()).result()
            except StoreUnavailable:
                return False  # the store has logged why
        logger.info("the job queue is open")
        return True

    async def _open_and_serve(self) -> None:
        from deployments.live_deployment import read_settings

        while not self._is_open:
            self._metrics.record_store(False)
            await asyncio.sleep(RETRY_S)
            self._is_open = await asyncio.to_thread(self._open)
        # Before any job runs: its recipe may be a new one.
        settings = await read_settings(self._ingress.live_settings.remote)
        if not self._has_settings:
            await self.take_settings(settings)
        await self._queue.serve()

    async def take_settings(self, settings: Mapping[str, Any] | None) -> None:
        """Take the live settings of the ingress: Serve doesn't reconfigure an actor.

        Raises ``ValueError``.
        """
        from raylens.core.live_settings import apply_settings

        self._config = apply_settings(self._given_config, settings)
        self._graph.configure(self._config)
        self._has_settings = True

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the queue. Raises ``Overloaded`` while the store can't be reached."""
        if method not in METHODS:
            raise ValueError(f"unknown method {method!r}; known: {', '.join(sorted(METHODS))}")
        if not self._is_open:
            raise Overloaded(
                "the store of the job queue can't be reached; see the server's log",
                retry_after=RETRY_S,
            )
        return await getattr(self._queue, method)(*arguments)

    async def _release_jobs(self) -> None:
        self._queue.pause()
        await self._queue.hand_over()

    async def drain(self) -> int:
        """Run no further jobs. Return how many run."""
        return self._queue.drain()

    async def wake(self) -> None:
        """Look for jobs: another process has handed some over."""
        self._queue.wake()

    async def hand_over(self, pause_s: float) -> None:
        """Let another process begin at once the jobs that run here, and run none for a time.

        The pause ends, in case that this actor lives on.
        """
        self._queue.pause(pause_s)
        await self._queue.hand_over()


def _exit_process(serving: asyncio.Future[None]) -> None:
    """End the process if the queue has stopped, so that Serve starts another.

    An actor that went on would accept jobs and never run them.
    """
    if not serving.cancelled():
        logger.critical(
            "the job queue has stopped; this process exits", exc_info=serving.exception()
        )
        os._exit(1)
