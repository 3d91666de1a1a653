"""Server-sent events (WHATWG HTML, section 9.2): the ``data:`` lines of every streaming dialect."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.responses import StreamingResponse

RECONNECT_S = (0.25, 2.0)
"""Bounds of the random time after which a client comes back whose stream is handed over: clients
must not come all at once."""


def handover() -> str:
    """Return the end of a stream that another process goes on with: the client reconnects soon,
    with the id of the last event that it has got."""
    return f"retry: {int(1000 * random.uniform(*RECONNECT_S))}\n\n"


def event(data: Any, name: str = "", id: str = "") -> str:
    """Return one event. A string ``data`` is sent as it is, anything else as JSON."""
    if isinstance(data, str):
        text = data
    else:
        text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    head = f"event: {name}\n" if name else ""
    tail = f"id: {id}\n" if id else ""
    return f"{head}data: {text}\n{tail}\n"


async def stream(
    events: AsyncGenerator[str, None], media_type: str = "text/event-stream"
) -> StreamingResponse:
    """Return a response that streams ``events``, or pieces of another ``media_type``.

    It waits for the first event: an error before that keeps its own status instead of 200.
    """
    first = await anext(events, None)
    return StreamingResponse(
        _with_first(first, events),
        media_type=media_type,
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


async def _with_first(
    first: str | None, rest: AsyncGenerator[str, None]
) -> AsyncGenerator[str, None]:
    async with aclosing(rest):
        if first is not None:
            yield first
        async for text in rest:
            yield text
