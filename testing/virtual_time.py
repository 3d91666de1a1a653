"""An event loop whose time jumps to the next timer instead of waiting for it.

Code under test sleeps and times out with plain asyncio, and its hours pass in milliseconds.
"""

from __future__ import annotations

import asyncio
import selectors
from typing import Any

from raylens.jobs.clock import Clock

EPOCH = 1_700_000_000.0
"""The wall-clock time at which a loop starts."""
THREAD_POLL_S = 0.001
"""Longest real wait for a thread before the loop looks again, in seconds."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Time stands still while coroutines or threads work, and jumps when all of them wait.

    It is meant for code without network connections: a loop without timers, threads and
    connections would wait forever, so it raises ``RuntimeError``.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._threads = 0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        return self._now

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Any, *args: Any
    ) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = super().run_in_executor(executor, func, *args)
        self._threads += 1
        future.add_done_callback(self._on_thread_done)
        return future

    def _on_thread_done(self, _: asyncio.Future[Any]) -> None:
        self._threads -= 1

    async def shutdown_default_executor(self, *arguments: Any) -> None:
        self._threads += 1
        try:
            await super().shutdown_default_executor(*arguments)
        finally:
            self._threads -= 1

    def wait(self, timeout: float | None) -> float | None:
        """Return the real seconds to wait instead of ``timeout``, and advance the time."""
        if self._threads:
            return THREAD_POLL_S
        if timeout is None:
            raise RuntimeError("every coroutine waits, and nothing will wake one")
        self._now += timeout
        return 0.0


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if events or (timeout is not None and timeout <= 0):
            return events
        return super().select(self._loop.wait(timeout))


class VirtualTimePolicy(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self) -> VirtualTimeLoop:
        return VirtualTimeLoop()


class VirtualClock(Clock):
    """The clock of a machine whose time is that of the running loop.

    ``step`` is how far the wall clock has been set ahead, in seconds.
    """

    def __init__(self, boot_id: str = "boot-1") -> None:
        self.step = 0.0
        self._boot_id = boot_id

    def time(self) -> float:
        return EPOCH + asyncio.get_running_loop().time() + self.step

    def monotonic(self) -> float:
        return 1000.0 + asyncio.get_running_loop().time()

    @property
    def boot_id(self) -> str:
        return self._boot_id
