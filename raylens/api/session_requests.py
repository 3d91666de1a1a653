"""Requests of sessions, which are admitted, counted and logged as those of HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from raylens.api.access_log import AccessRecord, RequestMetrics, recording
from raylens.api.client_limits import counted, own_limits
from raylens.api.shared import Shared
from raylens.core.errors import RaylensError
from raylens.core.fairness import current_client
from raylens.core.keys import current_key

KEY_CHECK_S = 5.0
"""Seconds between two looks at the key of an open session, which may ask nothing."""


@asynccontextmanager
async def admission(shared: Shared, record: AccessRecord) -> AsyncIterator[None]:
    """Let the current client make a request within the context.

    Raises ``TooManyRequests`` and ``Overloaded`` before it begins.
    """
    key = current_key.get()
    record.key = None if key is None else key.name
    limits = own_limits(shared.config.client_limits)
    async with AsyncExitStack() as stack:
        stack.enter_context(shared.requests.take(current_client.get()))
        await stack.enter_async_context(counted(shared.leases, limits))
        yield


@asynccontextmanager
async def session_request(
    shared: Shared, metrics: RequestMetrics, record: AccessRecord
) -> AsyncIterator[None]:
    """As :func:`admission`, with a line in the log."""
    with recording(record, metrics):
        try:
            async with admission(shared, record):
                yield
        except RaylensError as error:
            record.status = error.http_status
            raise
        record.status = record.status or 200
