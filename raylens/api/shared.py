"""What the HTTP applications of a process share, one after the other.

An application is made for one configuration. If that changes, another one takes its place, while
requests that have begun end in the old one: what they hold still counts.
"""

from __future__ import annotations

from fastapi import FastAPI
from starlette.types import Scope

from raylens.api.context import Context
from raylens.api.request_body import MAX_UPLOADS, MAX_UPLOADS_PER_CLIENT, UnfinishedBodies
from raylens.core.config import AppConfig, AuthConfig
from raylens.core.draining import Draining
from raylens.core.errors import Unauthorized
from raylens.core.fairness import FairPlaces
from raylens.core.leases import Leases
from raylens.jobs.feed import JobFeed
from raylens.jobs.ports import JobService
from raylens.net.fetcher import Fetcher
from raylens.net.lookup import LookUp, look_up

_IN_FLIGHT = "requests are in flight"


class Shared:
    """Requests in flight, bodies that arrive, streams of events, downloads, leases of limits."""

    def __init__(
        self,
        config: AppConfig,
        jobs: JobService | None = None,
        leases: Leases | None = None,
        draining: Draining | None = None,
        look_up: LookUp = look_up,
    ) -> None:
        self.config = config
        self._look_up = look_up
        self.leases = leases or Leases()
        self.fetcher = Fetcher(config.fetch, look_up)
        self.requests = FairPlaces(_IN_FLIGHT, config.limits.max_in_flight)
        self.queue_writes = FairPlaces(_IN_FLIGHT, config.jobs.max_requests)
        self.queue_reads = FairPlaces(_IN_FLIGHT, config.jobs.max_reads)
        self.sessions = FairPlaces("sessions are open", config.realtime.max_sessions)
        self.bodies = UnfinishedBodies()
        self.uploads = UnfinishedBodies(MAX_UPLOADS, MAX_UPLOADS_PER_CLIENT)
        self.app: FastAPI | None = None
        """The current application, for what outlives one: sessions."""
        self.context: Context | None = None
        """That of the current application."""
        self.draining = draining
        self.feed: JobFeed | None = None
        if jobs is not None:
            self.feed = JobFeed(jobs, config.jobs.max_event_streams, draining)
        self.configure(config)

    def publish(self, app: FastAPI) -> None:
        """Make an application the current one, now that it is complete."""
        self.app, self.context = app, app.state.context

    def configure(self, config: AppConfig) -> None:
        """Take other limits. What is held beyond them stays until it is given back."""
        limits = config.limits
        self.requests.limit = limits.max_in_flight
        self.queue_writes.limit = config.jobs.max_requests
        self.queue_reads.limit = config.jobs.max_reads
        self.sessions.limit = config.realtime.max_sessions
        self.bodies.limit = limits.max_unfinished_bodies
        self.bodies.limit_per_client = limits.max_unfinished_bodies_per_client
        self.bodies.max_bytes = limits.max_unfinished_bytes
        if self.feed is not None:
            self.feed.limit = config.jobs.max_event_streams
        if config.fetch != self.config.fetch:
            self.fetcher = Fetcher(config.fetch, self._look_up)
        self.config = config

    def authorize(self, scope: Scope) -> None:
        """Read a client's key again: keys change while a session or a stream lasts.

        Raises ``Unauthorized`` and ``PermissionDenied``.
        """
        if not isinstance(self.config.auth, AuthConfig):
            return
        read_key = scope.get("state", {}).get("authorize")
        if read_key is None:
            raise Unauthorized("Authorization: this server asks for a key now", "Authorization")
        read_key()
