"""The commands for many pictures: each picture is one job of the server's queue.

A run may be interrupted at any time, and the next one resumes it. A picture is done once its
record, or its text file, is written. The others are submitted again, each under the same
idempotency key as before, so the server returns the job that it already has, ended or not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from raylens.cli.annotator import Annotator
from raylens.cli.client import Client
from raylens.cli.errors import REFUSED, ClientError, StatusError, UsageError
from raylens.cli.outputs import choose_format, open_store
from raylens.cli.pictures import find_pictures
from raylens.cli.progress import ProgressDisplay, Tally
from raylens.cli.results import Format, Result, ResultStore
from raylens.cli.run_settings import RunSettings
from raylens.cli.tasks import Task

Connect = Callable[[Callable[[str], None]], Client]
"""Makes a client that reports its waits to the given function."""


@dataclass(frozen=True)
class Arguments:
    """A command's arguments: the pictures, the request about each, and the output."""

    paths: tuple[Path, ...]
    task: Task
    out: Path | None
    file_format: Format | None
    recursive: bool
    in_flight: int
    retry_failed: bool
    redo: bool


def annotate(arguments: Arguments, connect: Connect, console: Console) -> int:
    """Ask about all pictures, report on ``console``, and return the exit status.

    Raises ``UsageError`` before anything is sent.
    """
    task, out = arguments.task, arguments.out
    file_format = choose_format(task, out, arguments.file_format)
    found = find_pictures(arguments.paths, arguments.recursive)
    pictures = found.pictures
    passed_over = found.describe_passed_over()
    if not pictures:
        paths = ", ".join(map(str, arguments.paths))
        raise UsageError(f"no pictures in {paths}{f'; {passed_over}' if passed_over else ''}")
    if passed_over:
        console.print(passed_over)
    retry = list(map(str, pictures)) if arguments.retry_failed else []
    with open_store(task, out, file_format, arguments.paths, pictures, retry) as store:
        settings = RunSettings(store, task, arguments.redo)
        return _annotate_pending(arguments, settings, pictures, store, connect, console)


def _annotate_pending(
    arguments: Arguments,
    settings: RunSettings,
    pictures: Sequence[Path],
    store: ResultStore,
    connect: Connect,
    console: Console,
) -> int:
    """Ask about the pictures that have no result yet, and return the exit status."""
    task = settings.task
    tally = Tally(len(pictures), task.verb)
    pending = _find_pending(pictures, store, tally, arguments.redo)
    with ProgressDisplay(tally, console) as display:

        def record(result: Result) -> None:
            if not settings.has_begun:
                settings.begin()
            store.write(result)
            tally.add(result)
            display.update()

        async def work() -> None:
            async with connect(console.print) as client:
                annotator = Annotator(client, task, arguments.retry_failed, record)
                await annotator.annotate_all(pending, min(arguments.in_flight, len(pending)))

        status, reason = _run(work)
    try:
        # Until the first result, --redo leaves the earlier ones alone.
        is_unchanged = arguments.redo and not settings.has_begun
        message = "" if is_unchanged else store.finish()
    except KeyboardInterrupt:
        status, reason, message = 130, "interrupted", ""
    except OSError as error:
        status, reason, message = status or 1, reason or _cannot_write(error), ""
    if message:
        console.print(message)
    hint = _hint(tally, status, store, arguments, settings)
    return _report(tally, status, reason, hint, console)


def _find_pending(
    pictures: Iterable[Path], store: ResultStore, tally: Tally, redo: bool
) -> list[Path]:
    """Return the pictures without a result from an earlier run, or with one that is redone.

    Count the others in ``tally``.
    """
    pending = []
    for picture in pictures:
        problem = store.earlier_problem(str(picture))
        if problem is None or (redo and not store.keeps(str(picture))):
            pending.append(picture)
        else:
            tally.add_earlier(str(picture), problem)
    return pending


def _run(work: Callable[[], Coroutine[Any, Any, None]]) -> tuple[int, str]:
    """Return the exit status, and the reason if the run stopped early."""
    try:
        asyncio.run(work())
    except KeyboardInterrupt:
        return 130, "interrupted; submitted jobs continue on the server"
    except StatusError as error:
        return error.exit_status, str(error)
    except ClientError as error:
        return 1, str(error)
    except OSError as error:
        return 1, _cannot_write(error)
    return 0, ""


def _cannot_write(error: OSError) -> str:
    return f"cannot write {error.filename or 'the results'}: {error.strerror or error}"


def _report(tally: Tally, status: int, reason: str, hint: str, console: Console) -> int:
    """Print the failures, the totals and what to do next.

    Return the exit status: 1 if a picture failed.
    """
    for file, problem in tally.failures:
        console.print(f"{file}: {problem}")
    console.print(tally.summary())
    if reason:
        console.print(f"stopped with {tally.done} of {tally.total} done: {reason}")
    if hint:
        console.print(hint)
    return status or (1 if tally.failures else 0)


def _hint(
    tally: Tally, status: int, store: ResultStore, arguments: Arguments, settings: RunSettings
) -> str:
    """Return what to do next; empty if nothing is left to do."""
    is_useless = status == REFUSED and not tally.processed
    if store.settings_path is None or is_useless:  # there is nothing that a run could resume
        return ""
    if status:
        # The earlier results are gone: --redo would begin again.
        change = " without --redo" if arguments.redo and settings.has_begun else ""
        return f"Run the same command again{change} to resume."
    if tally.failures and not arguments.retry_failed:
        return "Add --retry-failed to try the failed pictures again."
    return ""
