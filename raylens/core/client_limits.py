"""What one client may ask for."""

from __future__ import annotations

from pydantic import BaseModel, ByteSize, ConfigDict, PositiveInt


class ClientLimits(BaseModel):
    """Limits of one client, which is a key, or an address if there are no keys. Unset means none.

    They hold for all replicas of the ingress together.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    requests_per_minute: PositiveInt | None = None
    """POST requests. As many may come at once, if none came in the minute before."""
    tokens_per_minute: PositiveInt | None = None
    """Tokens of prompts and answers. They are known only at the end of an answer, so a request is
    refused if those before it have used up the budget. Those of background jobs don't count."""
    max_in_flight: PositiveInt | None = None
    """POST requests at a time."""
    max_event_streams: PositiveInt | None = None
    """Open streams of the events of jobs."""
    max_sessions: PositiveInt | None = None
    """Open sessions of live video."""
    max_queued_jobs: PositiveInt | None = None
    """Jobs that wait."""
    max_picture_bytes: ByteSize | None = None
    """Of the pictures of all jobs, and of all files."""

    def or_else(self, others: ClientLimits) -> ClientLimits:
        """Return these limits, and those of ``others`` for what isn't set, not even to null."""
        own = {name: getattr(self, name) for name in self.model_fields_set}
        return others.model_copy(update=own)


NO_LIMITS = ClientLimits()
