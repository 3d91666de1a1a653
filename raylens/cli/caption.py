"""``raylens caption``: captions the pictures of a folder through the server's job queue.

A run may be interrupted at any time, and the next one resumes it. A picture is done once its
record, or its text file, is written. The others are submitted again, each under the same
idempotency key as before, so the server returns the job that it already has, ended or not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from raylens.cli.caption_job import CaptionOptions
from raylens.cli.captioner import Captioner
from raylens.cli.client import Client
from raylens.cli.errors import ClientError, StatusError, UsageError
from raylens.cli.pictures import find_pictures
from raylens.cli.progress import ProgressDisplay, Tally
from raylens.cli.results import Format, Result, ResultFile, ResultStore, TextFiles

Connect = Callable[[Callable[[str], None]], Client]
"""Makes a client that reports its waits to the given function."""


@dataclass(frozen=True)
class CaptionArguments:
    """The command's arguments: the pictures, their options, and the output."""

    paths: tuple[Path, ...]
    options: CaptionOptions
    out: Path | None
    file_format: Format | None
    recursive: bool
    in_flight: int
    retry_failed: bool


def run_caption(arguments: CaptionArguments, connect: Connect, console: Console) -> int:
    """Caption the pictures, report on ``console``, and return the exit status.

    Raises ``UsageError`` before anything is sent.
    """
    file_format = _choose_format(arguments)
    found = find_pictures(arguments.paths, arguments.recursive)
    pictures = found.pictures
    passed_over = found.describe_passed_over()
    if not pictures:
        paths = ", ".join(map(str, arguments.paths))
        raise UsageError(f"no pictures in {paths}{f'; {passed_over}' if passed_over else ''}")
    if passed_over:
        console.print(passed_over)
    with _open_store(arguments, file_format, pictures) as store:
        return _caption_pending(arguments, pictures, store, connect, console)


def _choose_format(arguments: CaptionArguments) -> Format:
    """Return the output format. Raises ``UsageError`` if ``out`` does not go with it."""
    out = arguments.out
    is_csv = out is not None and out.suffix.lower() == ".csv"
    file_format = arguments.file_format or (Format.CSV if is_csv else Format.JSONL)
    if file_format is Format.TXT and out is not None:
        raise UsageError(
            "--out: not supported with --format txt, which writes each caption beside its picture"
        )
    if file_format is not Format.TXT and out is None:
        raise UsageError(f"--out: missing; --format {file_format.value} writes to one file")
    return file_format


def _open_store(
    arguments: CaptionArguments, file_format: Format, pictures: Sequence[Path]
) -> AbstractContextManager[ResultStore]:
    if arguments.out is None:
        return nullcontext(TextFiles(pictures))
    retry = set(map(str, pictures)) if arguments.retry_failed else set()
    return ResultFile(arguments.out, file_format, retry)


def _caption_pending(
    arguments: CaptionArguments,
    pictures: Sequence[Path],
    store: ResultStore,
    connect: Connect,
    console: Console,
) -> int:
    """Caption the pictures that have no result yet, and return the exit status."""
    tally = Tally(len(pictures))
    pending = _find_pending(pictures, store, tally)
    with ProgressDisplay(tally, console) as display:

        def record(result: Result) -> None:
            store.write(result)
            tally.add(result)
            display.update()

        async def work() -> None:
            async with connect(console.print) as client:
                captioner = Captioner(client, arguments.options, arguments.retry_failed, record)
                await captioner.caption_all(pending, min(arguments.in_flight, len(pending)))

        status, reason = _run(work)
    return _report(tally, status, reason, console)


def _find_pending(pictures: Iterable[Path], store: ResultStore, tally: Tally) -> list[Path]:
    """Return the pictures without a result from an earlier run. Count the others in ``tally``."""
    pending = []
    for picture in pictures:
        problem = store.earlier_problem(str(picture))
        if problem is None:
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
        return 2, str(error)
    except ClientError as error:
        return 1, str(error)
    except OSError as error:
        return 1, f"cannot write {error.filename or 'the captions'}: {error.strerror or error}"
    return 0, ""


def _report(tally: Tally, status: int, reason: str, console: Console) -> int:
    """Print the failures and the totals. Return the exit status: 1 if a picture failed."""
    for file, problem in tally.failures:
        console.print(f"{file}: {problem}")
    console.print(tally.summary())
    if not reason:
        return 1 if tally.failures else 0
    console.print(f"stopped with {tally.done} of {tally.total} done: {reason}")
    console.print("Run the same command again to resume.")
    return status
