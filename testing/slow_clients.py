"""Clients that hold a server's connections and send almost nothing, or endless heads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

TRICKLES = 192
IDLE = 500
HEAD_BYTES = 20 * 2**20
BYTE_S = 0.5
"""Time between two bytes of a trickle, and before a closed connection is opened again."""
_OPENING = b"POST /v1/caption HTTP/1.1\r\nHost: localhost\r\n"

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def slow_clients(url: str) -> AsyncIterator[None]:
    """Within the context, hold 192 requests whose bodies trickle and 500 idle connections, and send
    one head of 20 MiB after the other. Connections that the server closes are opened again. The
    context begins when that many have been opened."""
    talks = [_trickle] * TRICKLES + [_idle] * IDLE + [_send_head]
    opened: asyncio.Queue[None] = asyncio.Queue()
    tasks = [asyncio.create_task(_repeat(url, talk, opened)) for talk in talks]
    try:
        for _ in tasks:
            await opened.get()
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _repeat(url: str, talk: Talk, opened: asyncio.Queue[None]) -> None:
    address = urlsplit(url)
    while True:
        with suppress(OSError):
            reader, writer = await asyncio.open_connection(address.hostname, address.port)
            opened.put_nowait(None)
            try:
                await talk(reader, writer)
            finally:
                writer.close()
        await asyncio.sleep(BYTE_S)


async def _trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(_OPENING + b"Content-Type: application/json\r\nContent-Length: 1000000\r\n\r\n{")
    while not reader.at_eof():
        writer.write(b" ")
        await writer.drain()
        with suppress(TimeoutError):
            async with asyncio.timeout(BYTE_S):
                await reader.read()


async def _idle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def _send_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(_OPENING + b"X: " + b"x" * HEAD_BYTES)
    await writer.drain()
    await reader.read()
