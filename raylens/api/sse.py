"""Server-sent events (WHATWG HTML, section 9.2): the ``data:`` lines that every streaming dialect
here uses."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.responses import StreamingResponse


def event(data: Any) -> str:
    """One event; ``data`` is a string as it is, or anything that JSON can hold."""
    text = (
        data
        if isinstance(data, str)
        else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    )
    return f"data: {text}\n\n"


async def stream(events: AsyncGenerator[str, None]) -> StreamingResponse:
    """Answers 200 only once the first event is there, so that an error before it keeps its own
    status."""
    first = await anext(events, None)
    return StreamingResponse(
        _with_first(first, events),
        media_type="text/event-stream",
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
