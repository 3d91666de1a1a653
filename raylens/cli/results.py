"""Where ``raylens caption`` keeps its results: a file of lines, or a text file beside each picture."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import stat
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO, Protocol

HEADER = ["file", "caption", "error"]


class UsageError(Exception):
    """The command can't work as it was given; the message says why."""


class Format(StrEnum):
    JSONL = "jsonl"
    TXT = "txt"
    CSV = "csv"


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


class ResultStore(Protocol):
    """Where results are kept."""

    def earlier(self, file: str) -> str | None:
        """What an earlier run left: nothing (None), a caption (an empty string), or a problem in
        words."""
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
                raise UsageError(
                    f"{owner} and {picture} would share one text file; give --format jsonl --out …"
                )

    def earlier(self, file: str) -> str | None:
        return "" if os.path.exists(Path(file).with_suffix(".txt")) else None

    def write(self, result: Result) -> None:
        if result.caption is None:
            return
        path = Path(result.file).with_suffix(".txt")
        part = path.with_name(f".{path.name}.part")
        part.write_text(f"{result.caption}\n", encoding="utf-8")
        part.replace(path)


class ResultFile(AbstractContextManager["ResultFile"]):
    """A file of results, JSON lines or CSV, that grows by one record for each.

    At first a record that was torn at the end is cut off, and those of the failures of ``again``,
    pictures that are to be tried again, are taken out. Raises ``UsageError`` for a file that is
    something else, or that another run writes.
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
            raise UsageError(f"{path}: {error.strerror or error}") from None

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
        """Reads what is there: where its last whole record ends, and where those begin that are to
        go."""
        end, drops = 0, set()
        for number, record in enumerate(self._records(), start=1):
            if not (self._is_csv and number == 1):
                file, problem = self._parsed(record, number)
                self._earlier[file] = problem
                if problem and file in again:
                    drops.add(end)
                    del self._earlier[file]
            elif record.rstrip(b"\r\n") != _csv_record(HEADER).rstrip():
                raise UsageError(
                    f"{self._path}: its first line is not {','.join(HEADER)}; give another --out"
                )
            end += len(record)
        self._check_torn(end)
        return end, drops

    def _records(self) -> Iterator[bytes]:
        """Whole records with their line ends. A line end in CSV between quotation marks belongs to
        the record."""
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
            raise UsageError(
                f"{self._path}: record {number} is none of captions; give another --out"
            ) from None

    def _check_torn(self, end: int) -> None:
        """A file without one whole record may be anything, and is cut only where it begins as ours
        do."""
        self._file.seek(0)
        start = self._file.read(16) if end == 0 else b""
        ours = _csv_record(HEADER) if self._is_csv else b'{"file": "'
        if not start.startswith(ours) and not ours.startswith(start):
            raise UsageError(f"{self._path}: not a file of captions; give another --out")

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
            raise UsageError(f"{path}: not a regular file")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UsageError(f"{path}: another run writes it") from None
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
    problem = (
        "" if isinstance(shown.get("caption"), str) else str(shown["error"]["message"]) or "failed"
    )
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
