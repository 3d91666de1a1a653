"""The actor that owns the job queue. Serve starts it before the ingress's replicas, and again when
it has died.

Serve pickles this module by value: it is thin, and the queue itself is in
:mod:`raylens.jobs.queue`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray import serve

from raylens.core.config import AppConfig
from raylens.core.environment import with_environment
from raylens.core.errors import Overloaded
from raylens.jobs.store import StoreUnreachable

logger = logging.getLogger("raylens.jobs.actor")

THREADS = 64
RETRY_S = 5.0
"""Until a store that couldn't be reached is tried again."""
METHODS = frozenset(
    {
        "submit",
        "submit_all",
        "get",
        "page",
        "cancel",
        "retry",
        "stats",
        "watch",
        "deliveries",
        "redeliver",
    }
)
"""Of :class:`raylens.jobs.ports.JobService`."""


@ray.remote
class JobQueueActor:
    """Runs one :class:`raylens.jobs.queue.JobQueue` against the graph's own handles.

    During an update an old and a new one live side by side for seconds, and the old one is killed
    without notice: the store's leases and fences keep them apart.
    """

    def __init__(self, args: dict[str, Any]) -> None:
        """``args`` are those of :func:`deployments.app.build_app`."""
        from deployments.graph import Graph
        from deployments.job_metrics import PrometheusJobMetrics
        from raylens.core.logs import configure_logging
        from raylens.jobs.factory import create_queue

        settings, _ = with_environment(args, os.environ)
        config = AppConfig.model_validate(settings)
        configure_logging(config.log_level)
        # Names of webhooks' hosts may be slow to resolve, and each holds a thread meanwhile.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS))
        application = serve.get_deployment_actor_context().app_name

        def handle(name: str) -> Any:
            return serve.get_deployment_handle(name, app_name=application)

        graph = Graph(
            config,
            application,
            handle("Preprocessor"),
            {m.name: handle(m.name) for m in config.models},
        )
        self._queue = create_queue(config, graph, PrometheusJobMetrics())
        self._is_open = False
        if self._open():
            self._serving = asyncio.ensure_future(self._queue.serve())
        else:
            self._serving = asyncio.ensure_future(self._open_and_serve())
        self._serving.add_done_callback(_die)

    def _open(self) -> bool:
        """Whether the store could be opened. Raises ``StoreUnusable`` where it never can: then no
        deployment starts."""
        # In a loop of its own: this constructor runs in the actor's, and blocks it until the store
        # is open.
        with ThreadPoolExecutor(1) as thread:
            try:
                thread.submit(asyncio.run, self._queue.open()).result()
            except StoreUnreachable as error:
                logger.error("%s", error)
                return False
        self._is_open = True
        logger.info("the job queue is open")
        return True

    async def _open_and_serve(self) -> None:
        while not await asyncio.to_thread(self._open):
            await asyncio.sleep(RETRY_S)
        await self._queue.serve()

    async def call(self, method: str, *arguments: Any) -> Any:
        """One of the queue's methods. Raises ``Overloaded`` while the store can't be reached."""
        if method not in METHODS:
            raise ValueError(f"no method {method!r}")
        if not self._is_open:
            raise Overloaded(
                "the job queue's store can't be reached; the server's log tells more",
                retry_after=RETRY_S,
            )
        return await getattr(self._queue, method)(*arguments)


def _die(serving: asyncio.Future[None]) -> None:
    """Serve starts another: better than to take jobs that nobody runs."""
    if not serving.cancelled():
        logger.critical(
            "the queue has stopped working, and this process ends", exc_info=serving.exception()
        )
        os._exit(1)
