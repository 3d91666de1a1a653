"""An asyncio server in a thread of its own, for tests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
TIMEOUT_S = 10.0


@contextmanager
def serving_in_thread(handle: Handle, port: int = 0, ssl: Any = None) -> Iterator[int]:
    """Serve on 127.0.0.1, and yield the port. At the end all connections are dropped."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> asyncio.Server:
        return await asyncio.start_server(handle, "127.0.0.1", port, ssl=ssl)

    async def stop() -> None:
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    try:
        server = asyncio.run_coroutine_threadsafe(start(), loop).result(TIMEOUT_S)
        yield server.sockets[0].getsockname()[1]
        asyncio.run_coroutine_threadsafe(stop(), loop).result(TIMEOUT_S)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(TIMEOUT_S)
        loop.close()
