"""Serve's request routers for what pictures go through.

A model's router keeps a picture on one replica (:mod:`raylens.core.affinity`), and the
preprocessors' router takes one on that replica's node, so that the pixels need not cross the
network. The caller sets the session ids of its handles.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from ray.serve._private.common import DeploymentID
from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from deployments.lost_arguments import LostArgumentMixin
from deployments.model_routers import find_router, register_router
from raylens.core.affinity import Affinity

BURST_S = 0.05
"""Requests that follow each other so closely are not yet seen in the replicas' queues."""


def preprocessor_session_id(model: str, key: str) -> str:
    """Return the session id of a call that processes a picture for a model."""
    return f"{key} {model}"


class PreferenceRouter(LostArgumentMixin, RequestRouter):
    """Sends a request to the replica that it prefers, unless that is full. Others go to the less
    busy one of two."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._routed: WeakKeyDictionary[asyncio.Task[Any], PendingRequest] = WeakKeyDictionary()
        """The request that each task routes."""

    @abstractmethod
    def find_preferred(self, session_id: str) -> RunningReplica | None:
        """Return the replica that requests with a session id should go to, if there is one."""

    async def choose_replicas(
        self,
        candidate_replicas: Sequence[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        everyone = random.sample(candidate_replicas, len(candidate_replicas))
        ranks = [everyone[:2], everyone[2:]]
        task = asyncio.current_task()
        if pending_request is not None and task is not None:
            self._routed[task] = pending_request
            pending_request.routing_context.should_backoff = True
            session_id = pending_request.metadata.session_id
            if session_id and (preferred := self.find_preferred(session_id)):
                ranks.insert(0, [preferred])
        return ranks

    def _queue(self, replica: ReplicaID) -> int:
        """Return what is known of a replica's queue."""
        return self._replica_queue_len_cache.get(replica) or 0

    def _get_pending_request_matching_internal_request_id(
        self, request_metadata: Any = None
    ) -> PendingRequest | None:
        """Serve gives a replica to the request with the same internal id. Two calls out of one
        request share that id, so that one of them would wait forever. The task knows which request
        it routes."""
        task = asyncio.current_task()
        request = None if task is None else self._routed.get(task)
        return None if request is None or request.future.done() else request


class PictureRouter(PreferenceRouter):
    """Sends requests about one picture to one replica of a model, unless that has more than its
    share. The session id is the picture's key."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._affinity: Affinity[ReplicaID] = Affinity()
        self._routed_at = -math.inf
        register_router(self._deployment_id, self)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        self._update_affinity({replica.replica_id for replica in replicas})
        super().update_replicas(replicas)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        super().on_replica_actor_died(replica_id)
        self._update_affinity(self._replica_id_set)

    def _update_affinity(self, replicas: set[ReplicaID]) -> None:
        if replicas != self._affinity.replicas:
            self._affinity.update({replica: replica.unique_id for replica in replicas})

    def find_preferred(self, session_id: str) -> RunningReplica | None:
        # Shares matter only if there is something to share.
        is_busy = any(self._queue(replica) for replica in self._replicas)
        is_burst = time.monotonic() - self._routed_at < BURST_S
        replica_id = self._affinity.choose(session_id, is_bounded=is_burst or is_busy)
        return None if replica_id is None else self._replicas.get(replica_id)

    def _fulfill_next_pending_request(
        self, replica: RunningReplica, request_metadata: Any = None
    ) -> None:
        if self._get_pending_request_matching_internal_request_id() is not None:
            self._affinity.note(replica.replica_id)
            self._routed_at = time.monotonic()
        super()._fulfill_next_pending_request(replica, request_metadata)


class PreprocessorRouter(PreferenceRouter):
    """Takes a preprocessor on the node of the model's replica that the picture will go to, unless
    one that is chosen by chance has less to do. The session id is that of
    :func:`preprocessor_session_id`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._assigned: list[tuple[float, ReplicaID]] = []
        """When, and to which replicas, requests were assigned that are not sent yet."""

    def find_preferred(self, session_id: str) -> RunningReplica | None:
        key, _, model = session_id.partition(" ")
        router = find_router(DeploymentID(model, self._deployment_id.app_name))
        target = None if router is None else router.find_preferred(key)
        if target is None:
            return None
        near = [replica for replica in self._replicas_list if replica.node_id == target.node_id]
        if not near:
            return None
        # A picture is processed for longer than it travels.
        choices = [*random.sample(near, len(near)), random.choice(self._replicas_list)]
        return min(choices, key=lambda replica: self._work(replica.replica_id))

    def _work(self, replica: ReplicaID) -> int:
        return self._queue(replica) + sum(other == replica for _, other in self._assigned)

    def _fulfill_next_pending_request(
        self, replica: RunningReplica, request_metadata: Any = None
    ) -> None:
        now = time.monotonic()
        kept = [assigned for assigned in self._assigned if assigned[0] > now - BURST_S]  # the rest
        self._assigned = [*kept, (now, replica.replica_id)]  # was canceled before it was sent
        super()._fulfill_next_pending_request(replica, request_metadata)

    def on_send_request(self, replica_id: ReplicaID) -> None:
        super().on_send_request(replica_id)
        sent = (assigned for assigned in self._assigned if assigned[1] == replica_id)
        if (first := next(sent, None)) is not None:
            self._assigned.remove(first)
