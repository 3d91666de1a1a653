"""Stores for the results of ``raylens caption``: one file of records, or text files."""

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

from raylens.cli.errors import UsageError

CSV_HEADER = ["file", "caption", "error"]


class Format(StrEnum):
    JSONL = "jsonl"
    TXT = "txt"
    CSV = "csv"


@dataclass(frozen=True)
class Result:
    """The result of one picture: a caption, or an error's code and message."""

    file: str
    caption: str | None = None
    model: str | None = None
    error: dict[str, str] | None = None
    job_id: str | None = None

    @property
    def problem(self) -> str:
        """The error's message, or its code if the message is empty; empty if there is no error."""
        if not self.error:
            return ""
        return self.error["message"] or self.error["code"]


class ResultStore(Protocol):
    """A store of results that outlasts a run."""

    def earlier_problem(self, file: str) -> str | None:
        """Return the ``Result.problem`` that an earlier run stored; None if it stored nothing."""
        ...

    def write(self, result: Result) -> None:
        """Store a result. Raises ``OSError`` if it cannot be written."""
        ...


class TextFiles(ResultStore):
    """A text file beside each picture, written atomically. Failures are not stored.

    Raises ``UsageError`` if two pictures would have the same text file.
    """

    def __init__(self, pictures: Sequence[Path]) -> None:
        owners: dict[Path, Path] = {}
        for picture in pictures:
            owner = owners.setdefault(picture.with_suffix(".txt"), picture)
            if owner != picture:
                raise UsageError(
                    f"{owner} and {picture} would share one text file; use --format jsonl --out …"
                )

    def earlier_problem(self, file: str) -> str | None:
        return "" if os.path.exists(Path(file).with_suffix(".txt")) else None

    def write(self, result: Result) -> None:
        if result.caption is None:
            return
        path = Path(result.file).with_suffix(".txt")
        part = path.with_name(f".{path.name}.part")
        part.write_text(f"{result.caption}\n", encoding="utf-8")
        part.replace(path)


class ResultFile(ResultStore, AbstractContextManager["ResultFile"]):
    """A file of JSON lines or CSV with one record per result, locked against other runs.

    Opening it removes an incomplete last record, and the records of failed pictures in ``retry``.
    Raises ``UsageError`` if the file cannot be opened, is locked by another run, or is not a file
    of captions.
    """

    def __init__(self, path: Path, file_format: Format, retry: Collection[str] = ()) -> None:
        self._path = path
        self._is_csv = file_format is Format.CSV
        self._problems: dict[str, str] = {}
        try:
            self._file = _open_locked(path)
            with ExitStack() as on_error:
                on_error.callback(lambda: self._file.close())
                self._load(retry)
                on_error.pop_all()
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror or error}") from None

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def earlier_problem(self, file: str) -> str | None:
        return self._problems.get(file)

    def write(self, result: Result) -> None:
        self._file.write(_encode_csv_result(result) if self._is_csv else _encode_json(result))
        self._file.flush()

    def _load(self, retry: Collection[str]) -> None:
        end, dropped = self._scan(retry)
        if dropped:
            self._file = self._rewrite_without(dropped)
        else:
            self._file.truncate(end)
        if self._is_csv and end == 0:
            self._file.write(_encode_csv(CSV_HEADER))
            self._file.flush()

    def _scan(self, retry: Collection[str]) -> tuple[int, set[int]]:
        """Read the problems of the earlier results.

        Return the end of the last complete record and the starts of the records to drop, in bytes
        from the start of the file.
        """
        end = 0
        dropped: set[int] = set()
        for number, record in enumerate(self._read_records(), start=1):
            if self._is_csv and number == 1:
                self._check_header(record)
            else:
                file, problem = self._decode(record, number)
                if problem and file in retry:
                    dropped.add(end)
                    self._problems.pop(file, None)
                else:
                    self._problems[file] = problem
            end += len(record)
        if end == 0:
            self._check_start()
        return end, dropped

    def _read_records(self) -> Iterator[bytes]:
        """Yield the complete records with their line ends.

        A line end between quotation marks in CSV is part of the record.
        """
        self._file.seek(0)
        lines: list[bytes] = []
        quotes = 0
        for line in self._file:
            lines.append(line)
            quotes += line.count(b'"') if self._is_csv else 0
            if line.endswith(b"\n") and quotes % 2 == 0:
                yield b"".join(lines)
                lines = []
                quotes = 0

    def _check_header(self, record: bytes) -> None:
        if record.rstrip(b"\r\n") != _encode_csv(CSV_HEADER).rstrip():
            header = ",".join(CSV_HEADER)
            raise UsageError(f"{self._path}: the first line is not {header}; choose another --out")

    def _decode(self, record: bytes, number: int) -> tuple[str, str]:
        try:
            return _decode_csv(record) if self._is_csv else _decode_json(record)
        except (ValueError, KeyError, TypeError, AttributeError, csv.Error):
            raise UsageError(
                f"{self._path}: record {number} is not a caption; choose another --out"
            ) from None

    def _check_start(self) -> None:
        """Check that a file without a complete record starts as a file of captions does.

        Any other content is not ours to truncate.
        """
        expected = _encode_csv(CSV_HEADER) if self._is_csv else b'{"file": "'
        self._file.seek(0)
        start = self._file.read(16)
        if not start.startswith(expected) and not expected.startswith(start):
            raise UsageError(f"{self._path}: not a file of captions; choose another --out")

    def _rewrite_without(self, dropped: set[int]) -> BinaryIO:
        """Replace the file by a copy without the records that start at ``dropped``.

        An incomplete last record is left out too. Return the new file, open and locked.
        """
        part = self._path.with_name(f".{self._path.name}.part")
        offset = 0
        with part.open("wb") as copy:
            for record in self._read_records():
                if offset not in dropped:
                    copy.write(record)
                offset += len(record)
        part.replace(self._path)
        self._file.close()
        return _open_locked(self._path)


def _open_locked(path: Path) -> BinaryIO:
    """Open a file for reading and appending, with an exclusive lock.

    Raises ``UsageError`` if it is not a regular file or another run holds the lock.
    """
    file = path.open("a+b")
    try:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise UsageError(f"{path}: not a regular file")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UsageError(f"{path}: another run is writing to it") from None
    except BaseException:
        file.close()
        raise
    return file


def _encode_json(result: Result) -> bytes:
    fields: dict[str, Any] = {"file": result.file}
    if result.error is None:
        fields |= {"caption": result.caption, "model": result.model}
    else:
        fields["error"] = result.error
    fields["job_id"] = result.job_id
    try:
        return json.dumps(fields, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # the file's name is not valid UTF-8
        return json.dumps(fields).encode() + b"\n"


def _decode_json(record: bytes) -> tuple[str, str]:
    """Return a record's file and its problem; the problem is empty if there is a caption."""
    fields = json.loads(record)
    has_caption = isinstance(fields.get("caption"), str)
    problem = "" if has_caption else str(fields["error"]["message"]) or "failed"
    return os.fspath(fields["file"]), problem


def _encode_csv_result(result: Result) -> bytes:
    return _encode_csv([result.file, result.caption or "", result.problem])


def _encode_csv(row: Sequence[str]) -> bytes:
    """Return a row that ends with CRLF (RFC 4180). Cells that contain CR or LF are quoted."""
    text = io.StringIO(newline="")
    csv.writer(text).writerow(row)
    return text.getvalue().encode(errors="surrogateescape")


def _decode_csv(record: bytes) -> tuple[str, str]:
    """Return a row's file and its problem; the problem is empty if there is a caption."""
    text = io.StringIO(record.decode(errors="surrogateescape"), newline="")
    file, _, problem = next(csv.reader(text))
    return file, problem
