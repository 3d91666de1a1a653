"""Serve's request router for sessions: requests about one go to the replica that holds it."""

from __future__ import annotations

from ray.serve.request_router import RunningReplica

from deployments.picture_router import PreferenceRouter


class SessionRouter(PreferenceRouter):
    """The session id is that of a replica. If that is gone, any other says so."""

    def find_preferred(self, session_id: str) -> RunningReplica | None:
        replicas = self._replicas_list
        return next((it for it in replicas if it.replica_id.unique_id == session_id), None)
