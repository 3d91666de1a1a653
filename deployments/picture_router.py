"""Serve's request router for models: :mod:`raylens.core.affinity` over a deployment's replicas.

The caller sets the picture's key as the session id of its handle.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from deployments.lost_arguments import LostArgumentMixin
from raylens.core.affinity import Affinity

BURST_S = 0.05
"""Requests that follow each other so closely are not yet seen in the replicas' queues."""


class PictureRouter(LostArgumentMixin, RequestRouter):
    """Sends requests about one picture to one replica, unless that has more than its share or is
    full. Others go to the less busy one of two."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._affinity: Affinity[ReplicaID] = Affinity()
        self._routed_at = -math.inf
        self._routed: WeakKeyDictionary[asyncio.Task[Any], PendingRequest] = WeakKeyDictionary()
        """The request that each task routes."""

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        self._update_affinity({replica.replica_id for replica in replicas})
        super().update_replicas(replicas)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        super().on_replica_actor_died(replica_id)
        self._update_affinity(self._replica_id_set)

    def _update_affinity(self, replicas: set[ReplicaID]) -> None:
        if replicas != self._affinity.replicas:
            self._affinity.update({replica: replica.unique_id for replica in replicas})

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
            if preferred := self._find_preferred(pending_request.metadata.session_id):
                ranks.insert(0, [preferred])
        return ranks

    def _find_preferred(self, key: str) -> RunningReplica | None:
        if not key:
            return None
        # Shares matter only if there is something to share.
        queues = (self._replica_queue_len_cache.get(replica) for replica in self._replicas)
        is_burst = time.monotonic() - self._routed_at < BURST_S
        replica_id = self._affinity.choose(key, is_bounded=is_burst or any(queues))
        return None if replica_id is None else self._replicas.get(replica_id)

    def _fulfill_next_pending_request(
        self, replica: RunningReplica, request_metadata: Any = None
    ) -> None:
        if self._get_pending_request_matching_internal_request_id() is not None:
            self._affinity.note(replica.replica_id)
            self._routed_at = time.monotonic()
        super()._fulfill_next_pending_request(replica, request_metadata)

    def _get_pending_request_matching_internal_request_id(
        self, request_metadata: Any = None
    ) -> PendingRequest | None:
        """Serve gives a replica to the request with the same internal id. Two calls out of one
        request share that id, so that one of them would wait forever. The task knows which request
        it routes."""
        task = asyncio.current_task()
        request = None if task is None else self._routed.get(task)
        return None if request is None or request.future.done() else request
