"""Routers that give up a call whose argument is lost.

A picture travels from the preprocessor to a model as an argument. If the preprocessor's node dies,
the argument fails with ``ActorUnavailableError``, because Ray knows of the death only some 15 s
later. Serve takes that for a failure of the model's replica: it sends the call to another one with
the same argument, without a pause and until the deadline.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ray.exceptions import RayTaskError
from ray.serve._private.request_router.pow_2_router import PowerOfTwoChoicesRequestRouter
from ray.serve.exceptions import RayServeException
from ray.serve.request_router import ReplicaID, RequestRouter

_Base = RequestRouter if TYPE_CHECKING else object


class LostArgumentMixin(_Base):  # type: ignore[misc, valid-type]
    """Raises, to the caller, what Serve would try again in vain."""

    def on_replica_actor_unavailable(self, replica_id: ReplicaID) -> None:
        error = sys.exception()  # Serve calls this while it handles the error
        if isinstance(error, RayTaskError):  # the replica has answered: it is an argument's
            raise RayServeException("an argument is lost, because its actor is away") from error
        super().on_replica_actor_unavailable(replica_id)


class DefaultRouter(LostArgumentMixin, PowerOfTwoChoicesRequestRouter):
    """Serve's own router, for models without caches."""
