"""What the WebSockets have in common: the choice of a subprotocol, errors that are messages before
the connection is closed, and time-outs."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from raylens.api.client_limits import own_limits, session_place
from raylens.api.clients import SUBPROTOCOL
from raylens.api.draining import DRAINS, SERVICE_RESTART
from raylens.api.session_requests import KEY_CHECK_S
from raylens.api.shared import Shared
from raylens.core.concurrency import until_first
from raylens.core.errors import Overloaded, RaylensError, RequestTimeout
from raylens.core.fairness import current_client
from raylens.realtime.messages import INTERNAL_ERROR, error_message

logger = logging.getLogger(__name__)

CODES = 4000
"""Added to an HTTP status, gives the code with which a WebSocket is closed (RFC 6455, 7.4.2)."""
MAX_REASON_BYTES = 123
END = {"response": "", "done": True}
"""Of the last message of an answer, as clients of VLM Node expect it, also if it is an error."""
RECONNECT_S = 1.0


class ServerStops(Overloaded):
    """The server drains: it has ended what ran, and takes nothing new."""

    def __init__(self) -> None:
        message = "this part of the server is about to stop: connect again"
        super().__init__(message, None, None, None, RECONNECT_S)


async def accept(socket: WebSocket) -> None:
    """Accept a connection with the first subprotocol that isn't a key; with a key's only if there
    is nothing else, since browsers insist on one of theirs."""
    header = Headers(scope=socket.scope).get("sec-websocket-protocol", "")
    offered = [name.strip() for name in header.split(",") if name.strip()]
    others = [name for name in offered if not name.startswith(SUBPROTOCOL)]
    await socket.accept(next(iter(others or offered), None))


async def fail(socket: WebSocket, error: RaylensError) -> None:
    """Send an error, and close the connection."""
    with suppress(ClientLeft, WebSocketDisconnect, RuntimeError, OSError):
        await send(socket, {**END, **error_message(error)})
        await socket.close(_close_code(error), _reason(error))


class ClientLeft(Exception):
    """The connection has ended."""


async def send(socket: WebSocket, message: dict[str, Any]) -> None:
    """Send a message as JSON. Raises :class:`ClientLeft`."""
    try:
        await socket.send_text(json.dumps(message))  # ASCII: texts may hold half a character
    except (WebSocketDisconnect, RuntimeError, OSError) as error:
        raise ClientLeft from error


async def run_session(
    socket: WebSocket, shared: Shared, run: Callable[[], Coroutine[Any, Any, None]]
) -> None:
    """Run a session if the client may have another one, and tell it why the session ends."""
    await accept(socket)
    try:
        async with AsyncExitStack() as stack:
            stack.enter_context(shared.sessions.take(current_client.get()))
            limits = own_limits(shared.config.client_limits)
            await stack.enter_async_context(session_place(shared.leases, limits))
            await until_first(run(), watch_key(socket, shared))
    except RaylensError as error:
        await fail(socket, error)
    except Exception:
        logger.exception("a session failed")
        await fail(socket, INTERNAL_ERROR)


async def watch_key(socket: WebSocket, shared: Shared) -> None:
    """Raise as :meth:`Shared.authorize` does, soon after the client's key was taken away."""
    while True:
        await asyncio.sleep(KEY_CHECK_S)
        shared.authorize(socket.scope)


async def refuse(error: RaylensError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a connection's request with an error: clients can't see the status of a handshake."""
    socket = WebSocket(scope, receive, send)
    await accept(socket)
    await fail(socket, error)


async def messages(
    socket: WebSocket,
    idle_s: Callable[[], float],
    is_busy: Callable[[], bool],
    on_drain: Callable[[], None],
) -> AsyncGenerator[str | bytes, None]:
    """Yield what a client sends, until it disconnects.

    If the server drains, ``on_drain`` is called, and nothing is yielded any more. Raises
    ``RequestTimeout`` if nothing has come for ``idle_s`` seconds, and the client doesn't wait for
    an answer either.
    """
    receiving = asyncio.create_task(socket.receive())
    drains = False
    try:
        while True:
            done, _ = await asyncio.wait({receiving}, timeout=idle_s())
            if done:
                message = receiving.result()
                if message["type"] == "websocket.disconnect":
                    return
                receiving = asyncio.create_task(socket.receive())
                if message.get(DRAINS) and not drains:
                    drains = True
                    on_drain()
                for content in (message.get("text"), message.get("bytes")):
                    if content is not None and not drains:
                        yield content
            elif not is_busy():
                raise RequestTimeout(f"nothing was received for {idle_s():g} s")
    finally:
        receiving.cancel()
        with suppress(asyncio.CancelledError, RuntimeError):
            await receiving


def _close_code(error: RaylensError) -> int:
    return SERVICE_RESTART if isinstance(error, ServerStops) else CODES + error.http_status


def _reason(error: RaylensError) -> str:
    return error.message.encode()[:MAX_REASON_BYTES].decode(errors="ignore")
