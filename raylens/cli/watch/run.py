"""Runs a watch, and says how it went."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from typing import Any

from rich.console import Console

from raylens.cli.client import Client
from raylens.cli.errors import REFUSED, ClientError, StatusError, UsageError
from raylens.cli.watch.live import LiveWatch, SourceReports, Sparing
from raylens.cli.watch.plan import Plan, check_plan
from raylens.cli.watch.progress import Progress
from raylens.cli.watch.questions import LiveQuestions, PatientQuestions
from raylens.cli.watch.recorded import RecordedWatch
from raylens.cli.watch.sink import Sink
from raylens.cli.watch.webhooks import (
    SECRET_VARIABLE,
    WebhookSender,
    check_webhook,
    make_client,
)
from raylens.core.errors import InvalidRequest, RaylensError
from raylens.realtime.sources.base import SourceOptions, SourceUnavailable
from raylens.realtime.sources.live import LiveFrames
from raylens.realtime.sources.opening import open_source

Connect = Callable[[Callable[[str], None]], Client]
"""Makes a client that reports its waits to the given function."""
LAST_DELIVERIES_S = 10.0
"""How long the end waits for webhooks."""
INTERRUPTED = "interrupted; the files are complete"


def watch(plan: Plan, connect: Connect, console: Console) -> int:
    """Watch until the end or a signal, as :func:`watch_until` does."""

    async def run() -> int:
        stop = asyncio.Event()
        with _signals(stop) as received:
            return await watch_until(stop, plan, connect, console, received)

    return asyncio.run(run())


async def watch_until(
    stop: asyncio.Event,
    plan: Plan,
    connect: Connect,
    console: Console,
    signals: Sequence[int] = (),
) -> int:
    """Watch until the end, or until ``stop`` is set. Return the exit status.

    It reports on ``console``. ``signals`` are those that have set ``stop``. Raises ``UsageError``,
    as a rule before anything is read or sent.
    """
    check_plan(plan)
    secret = os.environ.get(SECRET_VARIABLE)
    if plan.outputs.webhook is not None:
        check_webhook(plan.outputs.webhook, secret)
    progress = Progress(plan.address.shown, console, plan.is_live)
    status, reason = await _Run(plan, connect, console, progress, secret).run(stop)
    if signals and not status:
        status, reason = 128 + signals[0], INTERRUPTED
    console.print(progress.summary())
    if reason:
        console.print(reason if reason is INTERRUPTED else f"stopped: {reason}")
    return status or (1 if progress.failures or progress.undelivered else 0)


class _Run:
    def __init__(
        self,
        plan: Plan,
        connect: Connect,
        console: Console,
        progress: Progress,
        secret: str | None,
    ) -> None:
        self._plan = plan
        self._connect = connect
        self._notify = console.print
        self._progress = progress
        self._secret = secret

    async def run(self, stop: asyncio.Event) -> tuple[int, str]:
        """Return the exit status, and why the watch failed, if it did."""
        try:
            await self._watch(stop)
        except UsageError:
            raise
        except StatusError as error:
            return error.exit_status, str(error)
        except ClientError as error:
            return 1, str(error)
        except InvalidRequest as error:
            return REFUSED, error.message
        except RaylensError as error:
            return 1, error.message
        except OSError as error:
            return 1, f"cannot write {error.filename or 'the output'}: {error.strerror or error}"
        return 0, ""

    async def _watch(self, stop: asyncio.Event) -> None:
        plan = self._plan
        async with AsyncExitStack() as stack:
            threads = ThreadPoolExecutor(1, thread_name_prefix="watch")
            stack.callback(threads.shutdown, wait=False)
            webhooks = await self._open_webhooks(stack)
            shown = plan.address.shown
            sink = Sink(plan.outputs, shown, self._progress, webhooks, self._notify)
            stack.enter_context(sink)
            client = await stack.enter_async_context(self._connect(self._notify))
            stack.enter_context(self._progress)
            try:
                if plan.is_live:
                    await self._watch_live(client, sink, threads, stop)
                else:
                    await self._watch_recorded(client, sink, threads, stop)
            finally:
                try:
                    await asyncio.get_running_loop().run_in_executor(threads, sink.finish)
                finally:
                    await self._end_webhooks(webhooks)

    async def _watch_recorded(
        self, client: Client, sink: Sink, threads: ThreadPoolExecutor, stop: asyncio.Event
    ) -> None:
        plan = self._plan
        source = open_source(plan.address, report=self._notify_problem)
        try:
            recorded = RecordedWatch(source, PatientQuestions(client), plan, sink, threads)
            await recorded.run(stop)
        finally:
            await asyncio.get_running_loop().run_in_executor(threads, source.close)

    async def _watch_live(
        self, client: Client, sink: Sink, threads: ThreadPoolExecutor, stop: asyncio.Event
    ) -> None:
        plan = self._plan
        loop = asyncio.get_running_loop()

        sparing = Sparing(self._notify)

        def tell(problem: str) -> None:
            loop.call_soon_threadsafe(sparing, problem)

        options = SourceOptions(is_followed=plan.is_followed)
        reports = SourceReports(plan.address.shown, self._notify)
        live = LiveFrames(lambda: open_source(plan.address, options, tell), reports)
        await LiveWatch(live.frames(), LiveQuestions(client), plan, sink, threads).run(stop)
        if not self._progress.frames and not stop.is_set():
            self._check_silence(reports.problem)

    def _check_silence(self, problem: str | None) -> None:
        """Raise ``SourceUnavailable`` if a source should have given a frame."""
        plan = self._plan
        if problem is None and plan.is_followed:  # a folder to which no picture was added
            return
        shown = plan.address.shown
        reason = "nothing came" if problem is None else problem.removeprefix(f"{shown}: ")
        raise SourceUnavailable(f"{shown}: it gave no frame: {reason}")

    def _notify_problem(self, problem: str) -> None:
        self._progress.failures += 1
        self._notify(problem)

    async def _open_webhooks(self, stack: AsyncExitStack) -> WebhookSender | None:
        url = self._plan.outputs.webhook
        if url is None:
            return None
        client = await stack.enter_async_context(make_client())
        sender = WebhookSender(url, self._secret, client, self._notify)
        return await stack.enter_async_context(sender)

    async def _end_webhooks(self, webhooks: WebhookSender | None) -> None:
        if webhooks is None:
            return
        await webhooks.finish(LAST_DELIVERIES_S)
        if webhooks.undelivered:
            self._progress.undelivered = webhooks.undelivered
            self._notify(f"--webhook: {webhooks.undelivered} events were not delivered")


@contextmanager
def _signals(stop: asyncio.Event) -> Iterator[list[int]]:
    """Set ``stop`` on the first Ctrl-C or SIGTERM, and yield the signals that came.

    A second one ends the process as usual.
    """
    loop = asyncio.get_running_loop()
    received: list[int] = []
    kinds = (signal.SIGINT, signal.SIGTERM)

    def take(kind: int) -> None:
        received.append(kind)
        stop.set()
        restore()

    def restore() -> None:
        for kind in kinds:
            loop.remove_signal_handler(kind)

    handlers: dict[Any, Any] = {kind: signal.getsignal(kind) for kind in kinds}
    try:
        for kind in kinds:
            loop.add_signal_handler(kind, take, kind)
    except (RuntimeError, ValueError, NotImplementedError):  # not in the main thread
        yield received
        return
    try:
        yield received
    finally:
        restore()
        for kind, handler in handlers.items():
            signal.signal(kind, handler)
