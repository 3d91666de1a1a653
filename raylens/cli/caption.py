"""``raylens caption``: a folder's pictures to captions, through the server's job queue.

A run may be cut off anywhere. What has its line, or its text file, is done; the rest is submitted
again, each picture under the key that it had before, so that the server gives the same job back,
done or not.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from raylens.cli.client import (
    CANCELED,
    ENDED,
    FAILED,
    SUCCEEDED,
    Client,
    ClientError,
    Job,
    Refused,
    Unreachable,
)
from raylens.cli.progress import ProgressDisplay, Tally
from raylens.cli.results import Format, Result, ResultFile, ResultStore, TextFiles, UsageError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"})
LARGEST = 256 * 2**20
"""Bytes of a file that is read at all; the server's own limit is lower."""
UPLOADS = 4
"""Pictures in memory at a time, however many jobs are in flight."""
SUBMISSIONS = 3
"""Of one picture: a server that keeps jobs in memory only forgets them when it starts anew."""
_OF_ALL = ("input.prompt", "input.model", "input.length", "job_type")
"""A refusal that begins so would meet every picture."""
_OF_ONE = frozenset({409, 413, 415, 422, 500})


@dataclass(frozen=True)
class CaptionOptions:
    """What is asked about every picture; what is None is the server's choice."""

    prompt: str | None = None
    length: str | None = None
    model: str | None = None


def find(places: Iterable[Path], recursive: bool = True) -> list[Path]:
    """The pictures among files and in folders, each once, sorted as a person would.

    Names in a folder that begin with a dot are passed over. Raises ``UsageError`` for a place that
    isn't there.
    """
    found: dict[str, Path] = {}
    for place in places:
        if not os.path.lexists(place):
            raise UsageError(f"{place}: no such file or folder")
        for path in _within(place, recursive) if os.path.isdir(place) else [place]:
            if path.suffix.lower() in SUFFIXES or os.path.isdir(path):
                found.setdefault(os.path.abspath(path), path)
    return sorted(found.values(), key=_natural)


def _within(folder: Path, recursive: bool) -> Iterator[Path]:
    """Files, and folders that can't be looked into: the pictures in them are missing, which should
    be seen."""
    unseen: list[OSError] = []
    for place, folders, files in os.walk(folder, onerror=unseen.append):
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
        yield from (Path(place, name) for name in files if not name.startswith("."))
    yield from (Path(error.filename) for error in unseen)


def _natural(path: Path) -> tuple[list[list[str | int]], str]:
    """``2.png`` before ``10.png``."""
    parts = [re.split("([0-9]+)", part.casefold()) for part in path.parts]
    return [
        [int(text) if number % 2 else text for number, text in enumerate(part)] for part in parts
    ], str(path)


class Unsendable(Exception):
    """A picture that isn't sent: ``code`` and the message become its error."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def request(picture: Path, options: CaptionOptions) -> tuple[bytes, str]:
    """The body of a picture's job, and its idempotency key: the same in every run. Raises
    ``Unsendable``."""
    data = _read(picture)
    asked = {name: value for name, value in vars(options).items() if value is not None}
    frame = json.dumps({"job_type": "caption", "input": {**asked, "image": ""}}).encode()
    body = b"".join(
        (frame[:-3], base64.b64encode(data), frame[-3:])
    )  # before the `"}}` that the frame ends with
    identity = [hashlib.sha256(data).hexdigest(), options.prompt, options.length, options.model]
    return body, "raylens-caption-" + hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def _read(picture: Path) -> bytes:
    try:
        about = picture.stat()
        if not stat.S_ISREG(about.st_mode) and not stat.S_ISDIR(about.st_mode):
            raise Unsendable("unreadable", "not a regular file")  # a pipe would be waited for
        if about.st_size > LARGEST:
            raise Unsendable("payload_too_large", f"{about.st_size} bytes; the limit is {LARGEST}")
        return picture.read_bytes()
    except OSError as error:
        raise Unsendable("unreadable", error.strerror or str(error)) from None


class Captioner:
    """Keeps jobs in flight, one to a picture, and hands each result on as soon as it is there."""

    def __init__(
        self,
        client: Client,
        options: CaptionOptions,
        retries_failed: bool,
        keep: Callable[[Result], None],
    ) -> None:
        self._client = client
        self._options = options
        self._retries_failed = retries_failed
        self._keep = keep
        self._uploads = asyncio.Semaphore(UPLOADS)
        self._retried: set[str] = set()

    async def caption_all(self, pictures: Iterable[Path], in_flight: int) -> None:
        """Raises ``ClientError`` for what no picture alone is to blame for, and what ``keep``
        raises."""
        waiting = iter(pictures)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(in_flight):
                    group.create_task(self._work(waiting))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None

    async def _work(self, waiting: Iterator[Path]) -> None:
        for picture in waiting:
            self._keep(await self._caption(picture))

    async def _caption(self, picture: Path) -> Result:
        file = str(picture)
        try:
            return _result(file, await self._ended_job(picture))
        except Unsendable as error:
            return Result(file, error={"code": error.code, "message": str(error)})
        except Refused as error:
            if error.status not in _OF_ONE or str(error).startswith(_OF_ALL):
                raise
            return Result(file, error={"code": f"http_{error.status}", "message": str(error)})
        except Unreachable as error:
            if not error.answers_others:
                raise
            return Result(file, error={"code": "connection_lost", "message": str(error)})

    async def _ended_job(self, picture: Path) -> Job:
        for _ in range(SUBMISSIONS):
            job = await self._submitted(picture)
            try:
                return await self._end_of(job)
            except Refused as error:
                if error.status != 404:
                    raise
        raise Unsendable("job_not_found", f"the server has lost its job {SUBMISSIONS} times")

    async def _submitted(self, picture: Path) -> Job:
        async with self._uploads:
            return await self._client.submit(
                *await asyncio.to_thread(request, picture, self._options)
            )

    async def _end_of(self, job: Job) -> Job:
        """Waits for it; one that an earlier run saw fail gets one more chance, where that is
        wanted."""
        if (
            self._retries_failed
            and job["status"] in (FAILED, CANCELED)
            and job["id"] not in self._retried
        ):
            self._retried.add(job["id"])
            try:
                job = await self._client.retry(job["id"])
            except Refused as error:
                if error.status != 409:  # else someone has just done so
                    raise
                job = await self._client.get(job["id"])
        return job if job["status"] in ENDED else await self._client.last(job["id"])


def _result(file: str, job: Job) -> Result:
    if job["status"] == SUCCEEDED:
        output = job["output"]
        return Result(file, output["caption"], output.get("model"), job_id=job["id"])
    error = job["error"] if job["status"] == FAILED else None
    told = error or {"code": job["status"], "message": f"the job was {job['status']}"}
    return Result(file, error={"code": told["code"], "message": told["message"]}, job_id=job["id"])


@dataclass(frozen=True)
class CaptionRun:
    """A run: what is captioned, how, and where to."""

    places: tuple[Path, ...]
    options: CaptionOptions = CaptionOptions()
    out: Path | None = None
    form: Format | None = None
    recursive: bool = True
    in_flight: int = 32
    retries_failed: bool = False


def caption(
    run: CaptionRun, connect: Callable[[Callable[[str], None]], Client], console: Console
) -> int:
    """Captions, and tells of it on ``console``; the exit status. ``connect`` makes a client that
    tells its waits so.

    Raises ``UsageError`` before anything is sent.
    """
    form = run.form or (
        Format.CSV if run.out and run.out.suffix.lower() == ".csv" else Format.JSONL
    )
    if form is Format.TXT and run.out is not None:
        raise UsageError(
            "--out: with --format txt each caption goes beside its picture; leave it out"
        )
    if form is not Format.TXT and run.out is None:
        raise UsageError(f"--out: the file for the captions is needed with --format {form.value}")
    pictures = find(run.places, run.recursive)
    if not pictures:
        raise UsageError(
            f"no pictures in {', '.join(map(str, run.places))} ({' '.join(sorted(SUFFIXES))})"
        )
    if run.out is None:
        return _run(run, pictures, TextFiles(pictures), connect, console)
    with ResultFile(run.out, form, set(map(str, pictures)) if run.retries_failed else ()) as lines:
        return _run(run, pictures, lines, connect, console)


def _run(
    run: CaptionRun,
    pictures: Sequence[Path],
    record: ResultStore,
    connect: Callable[[Callable[[str], None]], Client],
    console: Console,
) -> int:
    tally = Tally(len(pictures))
    waiting = [picture for picture in pictures if not _is_settled(str(picture), record, tally)]

    async def work() -> None:
        async with connect(console.print) as client:
            captioner = Captioner(client, run.options, run.retries_failed, keep)
            await captioner.caption_all(waiting, min(run.in_flight, len(waiting)))

    with ProgressDisplay(tally, console) as meter:

        def keep(result: Result) -> None:
            record.write(result)
            tally.add(result)
            meter.show()

        status, problem = _outcome(work)
    return _report(tally, status, problem, console)


def _is_settled(file: str, record: ResultStore, tally: Tally) -> bool:
    """Whether an earlier run has left nothing to do; the tally counts it."""
    earlier = record.earlier(file)
    if earlier == "":
        tally.before += 1
    elif earlier is not None:
        tally.failures.append((file, earlier))
    return earlier is not None


def _outcome(work: Callable[[], Coroutine[Any, Any, None]]) -> tuple[int, str]:
    """The exit status of a run, and what stopped it, if anything has."""
    try:
        asyncio.run(work())
    except KeyboardInterrupt:
        return 130, "interrupted; jobs that were submitted go on on the server"
    except Refused as error:
        return 2, str(error)
    except ClientError as error:
        return 1, str(error)
    except OSError as error:
        return 1, f"{error.filename or 'the captions'} can't be written: {error.strerror or error}"
    return 0, ""


def _report(tally: Tally, status: int, problem: str, console: Console) -> int:
    for file, why in tally.failures:
        console.print(f"{file}: {why}")
    console.print(tally.summary())
    if not problem:
        return 1 if tally.failures else 0
    console.print(f"stopped with {tally.done} of {tally.total} done: {problem}")
    console.print("The same command goes on from here.")
    return status
