"""``raylens caption``: a folder's pictures to captions, through the server's job queue.

A run may be cut off anywhere. What has its line, or its text file, is done; the rest is submitted again, each picture
under the key that it had before, so that the server gives the same job back, done or not.
"""

from __future__ import annotations

import asyncio
import base64
import csv
import fcntl
import hashlib
import io
import json
import os
import re
import stat
import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from raylens.cli.client import CANCELED, ENDED, FAILED, SUCCEEDED, Client, ClientError, Job, Refused, Unreachable

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"})
LARGEST = 256 * 2**20
"""Bytes of a file that is read at all; the server's own limit is lower."""
UPLOADS = 4
"""Pictures in memory at a time, however many jobs are in flight."""
SUBMISSIONS = 3
"""Of one picture: a server that keeps jobs in memory only forgets them when it starts anew."""
PLAIN_PERIOD_S = 5.0
HEADER = ["file", "caption", "error"]
_OF_ALL = ("input.prompt", "input.model", "input.length", "job_type")
"""A refusal that begins so would meet every picture."""
_OF_ONE = frozenset({409, 413, 415, 422, 500})


class Unusable(Exception):
    """The command can't work as it was given; the message says why."""


class Format(StrEnum):
    JSONL = "jsonl"
    TXT = "txt"
    CSV = "csv"


@dataclass(frozen=True)
class Order:
    """What is asked about every picture; what is None is the server's choice."""

    prompt: str | None = None
    length: str | None = None
    model: str | None = None


@dataclass(frozen=True)
class Result:
    """What became of one picture: a caption, or else an error's code and message."""

    file: str
    caption: str | None = None
    model: str | None = None
    error: dict[str, str] | None = None
    job_id: str | None = None

    @property
    def problem(self) -> str:
        """Why there is no caption, in words; empty where there is one."""
        return self.error["message"] or self.error["code"] if self.error else ""


def find(places: Iterable[Path], recursive: bool = True) -> list[Path]:
    """The pictures among files and in folders, each once, sorted as a person would.

    Names in a folder that begin with a dot are passed over. Raises ``Unusable`` for a place that isn't there.
    """
    found: dict[str, Path] = {}
    for place in places:
        if not os.path.lexists(place):
            raise Unusable(f"{place}: no such file or folder")
        for path in _within(place, recursive) if os.path.isdir(place) else [place]:
            if path.suffix.lower() in SUFFIXES or os.path.isdir(path):
                found.setdefault(os.path.abspath(path), path)
    return sorted(found.values(), key=_natural)


def _within(folder: Path, recursive: bool) -> Iterator[Path]:
    """Files, and folders that can't be looked into: the pictures in them are missing, which should be seen."""
    unseen: list[OSError] = []
    for place, folders, files in os.walk(folder, onerror=unseen.append):
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
        yield from (Path(place, name) for name in files if not name.startswith("."))
    yield from (Path(error.filename) for error in unseen)


def _natural(path: Path) -> tuple[list[list[str | int]], str]:
    """``2.png`` before ``10.png``."""
    parts = [re.split("([0-9]+)", part.casefold()) for part in path.parts]
    return [[int(text) if number % 2 else text for number, text in enumerate(part)] for part in parts], str(path)


class Record(Protocol):
    """Where results are kept."""

    def earlier(self, file: str) -> str | None:
        """What an earlier run left: nothing (None), a caption (an empty string), or a problem in words."""
        ...

    def write(self, result: Result) -> None:
        """Keeps a result for good. Raises ``OSError``."""
        ...


class TextFiles:
    """A text file beside each picture, which is there whole or not at all. A failure leaves none."""

    def __init__(self, pictures: Sequence[Path]) -> None:
        owners: dict[Path, Path] = {}
        for picture in pictures:
            owner = owners.setdefault(picture.with_suffix(".txt"), picture)
            if owner != picture:
                raise Unusable(f"{owner} and {picture} would share one text file; give --format jsonl --out …")

    def earlier(self, file: str) -> str | None:
        return "" if os.path.exists(Path(file).with_suffix(".txt")) else None

    def write(self, result: Result) -> None:
        if result.caption is None:
            return
        path = Path(result.file).with_suffix(".txt")
        part = path.with_name(f".{path.name}.part")
        part.write_text(f"{result.caption}\n", encoding="utf-8")
        part.replace(path)


class Lines(AbstractContextManager["Lines"]):
    """A file of results, JSON lines or CSV, that grows by one record for each.

    At first a record that was torn at the end is cut off, and those of the failures of ``again``, pictures that are to
    be tried again, are taken out. Raises ``Unusable`` for a file that is something else, or that another run writes.
    """

    def __init__(self, path: Path, form: Format, again: Collection[str] = ()) -> None:
        self._path = path
        self._is_csv = form is Format.CSV
        self._earlier: dict[str, str] = {}
        try:
            self._file = _locked(path)
            with ExitStack() as unless_read:
                unless_read.callback(lambda: self._file.close())
                self._read(again)
                unless_read.pop_all()
        except OSError as error:
            raise Unusable(f"{path}: {error.strerror or error}") from None

    def __exit__(self, *raised: object) -> None:
        self._file.close()

    def earlier(self, file: str) -> str | None:
        return self._earlier.get(file)

    def write(self, result: Result) -> None:
        self._file.write(_csv_record(_row(result)) if self._is_csv else _json_record(result))
        self._file.flush()

    def _read(self, again: Collection[str]) -> None:
        end, drops = self._scan(again)
        if drops:
            self._file = self._without(drops)
        else:
            self._file.truncate(end)
        if self._is_csv and end == 0:
            self._file.write(_csv_record(HEADER))
            self._file.flush()

    def _scan(self, again: Collection[str]) -> tuple[int, set[int]]:
        """Reads what is there: where its last whole record ends, and where those begin that are to go."""
        end, drops = 0, set()
        for number, record in enumerate(self._records(), start=1):
            if not (self._is_csv and number == 1):
                file, problem = self._parsed(record, number)
                self._earlier[file] = problem
                if problem and file in again:
                    drops.add(end)
                    del self._earlier[file]
            elif record.rstrip(b"\r\n") != _csv_record(HEADER).rstrip():
                raise Unusable(f"{self._path}: its first line is not {','.join(HEADER)}; give another --out")
            end += len(record)
        self._check_torn(end)
        return end, drops

    def _records(self) -> Iterator[bytes]:
        """Whole records with their line ends. A line end in CSV between quotation marks belongs to the record."""
        self._file.seek(0)
        lines: list[bytes] = []
        quotes = 0
        for line in self._file:
            lines.append(line)
            quotes += line.count(b'"') if self._is_csv else 0
            if line.endswith(b"\n") and quotes % 2 == 0:
                yield b"".join(lines)
                lines, quotes = [], 0

    def _parsed(self, record: bytes, number: int) -> tuple[str, str]:
        try:
            return _from_csv(record) if self._is_csv else _from_json(record)
        except (ValueError, KeyError, TypeError, AttributeError, csv.Error):
            raise Unusable(f"{self._path}: record {number} is none of captions; give another --out") from None

    def _check_torn(self, end: int) -> None:
        """A file without one whole record may be anything, and is cut only where it begins as ours do."""
        self._file.seek(0)
        start = self._file.read(16) if end == 0 else b""
        ours = _csv_record(HEADER) if self._is_csv else b'{"file": "'
        if not start.startswith(ours) and not ours.startswith(start):
            raise Unusable(f"{self._path}: not a file of captions; give another --out")

    def _without(self, drops: set[int]) -> BinaryIO:
        """The file, replaced by one without the records that begin there and without a torn one."""
        part = self._path.with_name(f".{self._path.name}.part")
        place = 0
        with part.open("wb") as kept:
            for record in self._records():
                if place not in drops:
                    kept.write(record)
                place += len(record)
        part.replace(self._path)
        self._file.close()
        return _locked(self._path)


def _locked(path: Path) -> BinaryIO:
    """The file, open to be read and appended to, and for no other run at the same time."""
    file = path.open("a+b")
    try:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise Unusable(f"{path}: not a regular file")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise Unusable(f"{path}: another run writes it") from None
    except BaseException:
        file.close()
        raise
    return file


def _json_record(result: Result) -> bytes:
    shown: dict[str, Any] = {"file": result.file, "caption": result.caption, "model": result.model}
    if result.error is not None:
        shown = {"file": result.file, "error": result.error}
    shown["job_id"] = result.job_id
    try:
        return json.dumps(shown, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # a name on disk that is no UTF-8
        return json.dumps(shown).encode() + b"\n"


def _from_json(record: bytes) -> tuple[str, str]:
    """A record's file, and its problem where it has one."""
    shown = json.loads(record)
    problem = "" if isinstance(shown.get("caption"), str) else str(shown["error"]["message"]) or "failed"
    return os.fspath(shown["file"]), problem


def _row(result: Result) -> list[str]:
    return [result.file, result.caption or "", result.problem]


def _csv_record(row: Sequence[str]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerow(row)  # ends in \r\n, as RFC 4180 says, and quotes both
    return text.getvalue().encode(errors="surrogateescape")


def _from_csv(record: bytes) -> tuple[str, str]:
    text = io.StringIO(record.decode(errors="surrogateescape"), newline="")
    file, _, problem = next(csv.reader(text))
    return file, problem


class Unsendable(Exception):
    """A picture that isn't sent: ``code`` and the message become its error."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def request(picture: Path, order: Order) -> tuple[bytes, str]:
    """The body of a picture's job, and its idempotency key: the same in every run. Raises ``Unsendable``."""
    data = _read(picture)
    asked = {name: value for name, value in vars(order).items() if value is not None}
    frame = json.dumps({"job_type": "caption", "input": {**asked, "image": ""}}).encode()
    body = b"".join((frame[:-3], base64.b64encode(data), frame[-3:]))  # before the `"}}` that the frame ends with
    identity = [hashlib.sha256(data).hexdigest(), order.prompt, order.length, order.model]
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


class Tally:
    """How far a run is."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.before = 0
        """Captioned by an earlier run."""
        self.captioned = 0
        self.worked = 0
        """Captioned or failed, by this run."""
        self.failures: list[tuple[str, str]] = []
        self._started = time.monotonic()

    @property
    def done(self) -> int:
        return self.before + self.captioned + len(self.failures)

    @property
    def rate(self) -> float:
        return self.worked / max(time.monotonic() - self._started, 1e-3)

    def add(self, result: Result) -> None:
        self.worked += 1
        if result.error is None:
            self.captioned += 1
        else:
            self.failures.append((result.file, result.problem))

    def status(self) -> str:
        left = f", {_clock((self.total - self.done) / self.rate)} left" if self.worked else ""
        return f"{self.done}/{self.total} done, {len(self.failures)} failed, {self.rate:.1f}/s{left}"

    def summary(self) -> str:
        before = f" ({self.before} of them before)" if self.before else ""
        seconds = time.monotonic() - self._started
        pace = f"; {self.rate:.1f}/s, {_clock(seconds)}" if self.worked else ""
        captioned = self.before + self.captioned
        return f"{self.total} pictures: {captioned} captioned{before}, {len(self.failures)} failed{pace}"


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


class Meter(AbstractContextManager["Meter"]):
    """The tally where a person sees it: a bar on a terminal, elsewhere a line now and then."""

    def __init__(self, tally: Tally, console: Console, period_s: float = PLAIN_PERIOD_S) -> None:
        self._tally = tally
        self._period_s = period_s
        self._console = console
        self._said_at = time.monotonic()
        bar = Progress(BarColumn(), TextColumn("{task.description}", markup=False), console=console)
        self._bar = bar if console.is_terminal else None
        self._task = bar.add_task(tally.status(), total=tally.total, completed=tally.done)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *raised: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self) -> None:
        """To be called whenever the tally has changed."""
        if self._bar is not None:
            self._bar.update(self._task, description=self._tally.status(), completed=self._tally.done)
        elif time.monotonic() - self._said_at >= self._period_s:
            self._said_at = time.monotonic()
            self._console.print(self._tally.status())


class Captioner:
    """Keeps jobs in flight, one to a picture, and hands each result on as soon as it is there."""

    def __init__(self, client: Client, order: Order, retries_failed: bool, keep: Callable[[Result], None]) -> None:
        self._client = client
        self._order = order
        self._retries_failed = retries_failed
        self._keep = keep
        self._uploads = asyncio.Semaphore(UPLOADS)
        self._retried: set[str] = set()

    async def caption_all(self, pictures: Iterable[Path], in_flight: int) -> None:
        """Raises ``ClientError`` for what no picture alone is to blame for, and what ``keep`` raises."""
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
            return await self._client.submit(*await asyncio.to_thread(request, picture, self._order))

    async def _end_of(self, job: Job) -> Job:
        """Waits for it; one that an earlier run saw fail gets one more chance, where that is wanted."""
        if self._retries_failed and job["status"] in (FAILED, CANCELED) and job["id"] not in self._retried:
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
class Plan:
    """A run: what is captioned, how, and where to."""

    places: tuple[Path, ...]
    order: Order = Order()
    out: Path | None = None
    form: Format | None = None
    recursive: bool = True
    in_flight: int = 32
    retries_failed: bool = False


def caption(plan: Plan, connect: Callable[[Callable[[str], None]], Client], console: Console) -> int:
    """Captions, and tells of it on ``console``; the exit status. ``connect`` makes a client that tells its waits so.

    Raises ``Unusable`` before anything is sent.
    """
    form = plan.form or (Format.CSV if plan.out and plan.out.suffix.lower() == ".csv" else Format.JSONL)
    if form is Format.TXT and plan.out is not None:
        raise Unusable("--out: with --format txt each caption goes beside its picture; leave it out")
    if form is not Format.TXT and plan.out is None:
        raise Unusable(f"--out: the file for the captions is needed with --format {form.value}")
    pictures = find(plan.places, plan.recursive)
    if not pictures:
        raise Unusable(f"no pictures in {', '.join(map(str, plan.places))} ({' '.join(sorted(SUFFIXES))})")
    if plan.out is None:
        return _run(plan, pictures, TextFiles(pictures), connect, console)
    with Lines(plan.out, form, set(map(str, pictures)) if plan.retries_failed else ()) as lines:
        return _run(plan, pictures, lines, connect, console)


def _run(
    plan: Plan,
    pictures: Sequence[Path],
    record: Record,
    connect: Callable[[Callable[[str], None]], Client],
    console: Console,
) -> int:
    tally = Tally(len(pictures))
    waiting = [picture for picture in pictures if not _is_settled(str(picture), record, tally)]

    async def work() -> None:
        async with connect(console.print) as client:
            captioner = Captioner(client, plan.order, plan.retries_failed, keep)
            await captioner.caption_all(waiting, min(plan.in_flight, len(waiting)))

    with Meter(tally, console) as meter:

        def keep(result: Result) -> None:
            record.write(result)
            tally.add(result)
            meter.show()

        status, problem = _outcome(work)
    return _report(tally, status, problem, console)


def _is_settled(file: str, record: Record, tally: Tally) -> bool:
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
