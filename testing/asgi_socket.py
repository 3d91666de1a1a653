"""A WebSocket client of an ASGI application in the same event loop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp

PATIENCE_S = 10.0


@dataclass
class AsgiSocket:
    """What a client sends and receives."""

    sent: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)
    received: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)
    subprotocol: str | None = None

    def send(self, content: str | bytes | dict[str, Any]) -> None:
        if isinstance(content, dict):
            content = json.dumps(content)
        kind = "bytes" if isinstance(content, bytes) else "text"
        self.sent.put_nowait({"type": "websocket.receive", kind: content})

    async def receive(self) -> dict[str, Any]:
        """Return the next message as JSON."""
        message = await self.receive_event()
        assert message["type"] == "websocket.send", message
        content: dict[str, Any] = json.loads(message["text"])
        return content

    async def receive_event(self) -> dict[str, Any]:
        async with asyncio.timeout(PATIENCE_S):
            return await self.received.get()

    async def receive_answer(self) -> list[dict[str, Any]]:
        """Return the messages up to the one that is done."""
        messages = [await self.receive()]
        while not messages[-1]["done"]:
            messages.append(await self.receive())
        return messages

    async def receive_close(self) -> int:
        message = await self.receive_event()
        assert message["type"] == "websocket.close", message
        return int(message["code"])

    def disconnect(self) -> None:
        self.sent.put_nowait({"type": "websocket.disconnect", "code": 1006})


@asynccontextmanager
async def connected(
    app: ASGIApp,
    path: str,
    headers: dict[str, str] | None = None,
    subprotocols: Sequence[str] = (),
    client: str = "192.0.2.1",
) -> AsyncIterator[AsgiSocket]:
    """Connect within the context, and wait for the application to end after it."""
    socket = AsgiSocket()
    fields = {"host": "localhost", **(headers or {})}
    if subprotocols:
        fields["sec-websocket-protocol"] = ", ".join(subprotocols)
    scope = {
        "type": "websocket",
        "asgi": {"version": "3.0"},
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "scheme": "ws",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in fields.items()],
        "client": (client, 40_000),
        "server": ("localhost", 80),
        "subprotocols": list(subprotocols),
        "state": {},
    }
    socket.sent.put_nowait({"type": "websocket.connect"})
    running = asyncio.ensure_future(app(scope, socket.sent.get, _putter(socket)))
    try:
        accepted = await socket.receive_event()
        assert accepted["type"] == "websocket.accept", accepted
        socket.subprotocol = accepted.get("subprotocol")
        yield socket
    finally:
        socket.disconnect()
        async with asyncio.timeout(PATIENCE_S):
            await running


def _putter(socket: AsgiSocket) -> Any:
    async def put(message: dict[str, Any]) -> None:
        socket.received.put_nowait(message)

    return put
