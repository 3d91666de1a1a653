"""Serve's request router for models: :mod:`raylens.core.affinity` over a deployment's replicas.

The caller sets the picture's key as the session id of its handle.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from raylens.core.affinity import Affinity


class PictureRouter(RequestRouter):
    """Sends requests about one picture to one replica, unless that has more than its share or is
    full. Others go to the less busy one of two."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._affinity: Affinity[ReplicaID] = Affinity()
        self._in_flight = 0
        self._routed: WeakKeyDictionary[asyncio.Task[Any], PendingRequest] = WeakKeyDictionary()
        """The request that each task routes."""

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        if {replica.replica_id for replica in replicas} != self._replica_id_set:
            ids = (replica.replica_id for replica in replicas)
            self._affinity.update({replica_id: replica_id.unique_id for replica_id in ids})
        super().update_replicas(replicas)

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
        replica_id = self._affinity.choose(key, is_bounded=self._in_flight > 0)
        return None if replica_id is None else self._replicas.get(replica_id)

    def _fulfill_next_pending_request(
        self, replica: RunningReplica, request_metadata: Any = None
    ) -> None:
        self._affinity.note(replica.replica_id)
        self._in_flight += 1
        super()._fulfill_next_pending_request(replica, request_metadata)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        self._in_flight = max(0, self._in_flight - 1)

    def _get_pending_request_matching_internal_request_id(
        self, request_metadata: Any = None
    ) -> PendingRequest | None:
        """Serve gives a replica to the request with the same internal id. Two calls out of one
        request share that id, so that one of them would wait forever. The task knows which request
        it routes."""
        task = asyncio.current_task()
        request = None if task is None else self._routed.get(task)
        return None if request is None or request.future.done() else request
