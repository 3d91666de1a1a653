"""How a process learns that Serve, or ``raylens run``, is about to end it.

Serve has no public hook for that: a replica that is stopped hears of it only after its last
request. What is private in Serve is read here and nowhere else, and a test notes if it changes.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve._private.constants import SERVE_DEPLOYMENT_ACTOR_PREFIX, SERVE_NAMESPACE
from ray.serve.context import _get_global_client
from ray.serve.schema import ReplicaState

from deployments.job_client import QUEUE_ACTOR_NAME
from deployments.ray_environment import DRAIN_FILE

logger = logging.getLogger(__name__)

ASK_PERIOD_S = 5.0
"""Time between two questions to Serve's controller, in seconds."""
PREPARE_S = 8.0
"""An attempt at a job that doesn't stop when it is canceled is abandoned after 5 s."""
NODE_PERIOD_S = 2.0
"""Time between two looks at whether this node drains."""


def replica_draining(
    actor: Any, ask_controller: Callable[[], bool], period_s: float = ASK_PERIOD_S
) -> Callable[[], bool]:
    """Return what tells whether a replica is stopped: its own flag, or else what the controller
    says.

    ``actor`` is :func:`this_actor`, and ``ask_controller`` is :func:`is_stopping`. A question has
    one thread, however often this is called.
    """
    replica: Any = getattr(actor, "_replica_impl", None)
    if isinstance(getattr(replica, "_shutting_down", None), bool):
        return lambda: bool(replica._shutting_down)
    return _ask_in_background(ask_controller, period_s)


@functools.cache
def _ask_in_background(question: Callable[[], bool], period_s: float) -> AskedInBackground:
    logger.warning("Serve's replicas have no flag _shutting_down: the controller is asked instead")
    return AskedInBackground(question, period_s)


def proxy_draining(app: Any) -> Callable[[], bool]:
    """Return what tells whether Serve drains the proxy behind an ASGI application."""
    while app is not None:
        if callable(getattr(app, "_is_draining", None)):
            return app._is_draining
        app = getattr(app, "app", None) or getattr(app, "_app", None)
    logger.warning("Serve's proxy doesn't tell that it drains: streams of events end with it")
    return lambda: False


def machine_drain() -> dict[str, Any] | None:
    """Return what ``raylens run`` says about its drain; None while it doesn't drain."""
    path = os.environ.get(DRAIN_FILE)
    if not path:
        return None
    try:
        return dict(json.loads(Path(path).read_bytes()))
    except FileNotFoundError:
        return None
    except ValueError:
        return {}


def this_actor() -> Any:
    """Return the object of the actor that this process is; None if it is none."""
    worker = ray._private.worker.global_worker
    return getattr(worker, "actors", {}).get(worker.actor_id)


def is_stopping() -> bool:
    """Return whether the controller stops this replica."""
    context = serve.get_replica_context()
    details = _get_global_client().get_serve_details()
    deployments = details["applications"][context.app_name]["deployments"]
    return find_state(deployments[context.deployment], context.replica_tag) is ReplicaState.STOPPING


def find_state(deployment: Mapping[str, Any], replica_id: str) -> ReplicaState | None:
    """Return a replica's state in Serve's details of its deployment; None if it isn't there."""
    for replica in deployment["replicas"]:
        if replica["replica_id"] == replica_id:
            return ReplicaState(replica["state"])
    return None


class AskedInBackground:
    """A question that takes long. It is asked every ``period_s`` seconds, until the answer is yes;
    a failed one counts as no."""

    def __init__(self, question: Callable[[], bool], period_s: float) -> None:
        self._question = question
        self._period_s = period_s
        self.answered = threading.Event()
        """Set when the answer is yes."""
        threading.Thread(target=self._ask, name="draining", daemon=True).start()

    def __call__(self) -> bool:
        return self.answered.is_set()

    def _ask(self) -> None:
        while not self.answered.is_set():
            try:
                if self._question():
                    self.answered.set()
            except Exception as error:
                logger.warning("Serve's controller can't be asked: %s", error)
            time.sleep(self._period_s)


def queue_actor_names(application: str = "", code_version: str = "") -> list[str]:
    """Return the names of the actors that run a job queue, of one application or of all of them,
    but for those of a version."""
    names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
    return [name for name in names if _is_queue(name, application, code_version)]


def _is_queue(actor_name: str, application: str, but_version: str) -> bool:
    """Take the name apart that Serve's ``get_deployment_actor_name`` makes."""
    parts = actor_name.removeprefix(SERVE_DEPLOYMENT_ACTOR_PREFIX).rsplit("::", 3)
    if not actor_name.startswith(SERVE_DEPLOYMENT_ACTOR_PREFIX) or len(parts) != 4:
        return False
    owner, _, version, name = parts
    is_wanted = not application or owner == application
    return name == QUEUE_ACTOR_NAME and is_wanted and not (but_version and version == but_version)


def find_queue_actors() -> list[Any]:
    """Return the handles of the actors that run a job queue."""
    return [ray.get_actor(name, namespace=SERVE_NAMESPACE) for name in queue_actor_names()]


def node_drains() -> bool:
    """Return whether Ray drains this node. It asks the GCS, and may wait for it."""
    nodes = ray._private.worker.global_worker.gcs_client.get_draining_nodes(timeout=NODE_PERIOD_S)
    return ray.get_runtime_context().get_node_id() in nodes


async def leave_with_node(
    prepare: Callable[[], Awaitable[None]] | None = None,
    drains: Callable[[], bool] = node_drains,
    end: Callable[[int], object] = os._exit,
) -> None:
    """End this actor of a deployment when its node drains: Serve starts it on another one.

    Serve itself moves replicas only. ``prepare`` is awaited before, for ``PREPARE_S`` at the most.
    """
    if DRAIN_FILE in os.environ:
        return  # there are no other nodes
    while True:
        await asyncio.sleep(NODE_PERIOD_S)
        try:
            if await asyncio.to_thread(drains):
                break
        except Exception as error:  # the GCS is away, too
            logger.debug("the GCS can't be asked: %s", error)
    logger.info("this node drains: another one takes over")
    if prepare is not None:
        with suppress(Exception):
            async with asyncio.timeout(PREPARE_S):
                await prepare()
    end(0)
