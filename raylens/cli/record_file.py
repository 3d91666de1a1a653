"""A file of records that an interrupted run resumes."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from raylens.cli.errors import UsageError
from raylens.cli.records import RecordFormat
from raylens.cli.results import Result, ResultStore


class RecordFile(ResultStore):
    """A file with one record per result, locked against other runs.

    Opening it removes an incomplete last record. The records of failed pictures in ``retry`` are
    removed before the first new one is written.

    Raises ``UsageError`` if the file cannot be opened, is locked by another run, or is a file of
    something else.
    """

    def __init__(self, path: Path, records: RecordFormat, retry: Iterable[str] = ()) -> None:
        self._path = path
        self._records = records
        self._problems: dict[str, str] = {}
        self._retried: set[int] = set()
        """Starts of the records that :meth:`begin` removes, in bytes."""
        self.name = str(path)
        self.settings_path = path.with_name(f".{path.name}.settings")
        try:
            self._file = _open_locked(path)
            with ExitStack() as on_error:
                on_error.callback(lambda: self._file.close())
                self._load(frozenset(retry))
                on_error.pop_all()
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror or error}") from None

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    @property
    def is_empty(self) -> bool:
        return not (self._problems or self._retried)

    def earlier_problem(self, file: str) -> str | None:
        return self._problems.get(file)

    def begin(self, redo: bool) -> None:
        if redo:
            self._problems.clear()
            self._file.truncate(0)
            self._write(self._records.header)
        elif self._retried:
            self._file = self._rewrite_without(self._retried)

    def write(self, result: Result) -> None:
        self._write(self._records.encode(result))

    def read(self) -> Iterator[Result]:
        """Yield all results, in the order in which they were written."""
        for number, record in enumerate(self._read_records(), start=1):
            if number > 1 or not self._records.header:
                yield self._records.decode(record)

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._file.flush()

    def _load(self, retry: Collection[str]) -> None:
        end = self._scan(retry)
        self._file.truncate(end)
        if end == 0:
            self._write(self._records.header)

    def _scan(self, retry: Collection[str]) -> int:
        """Read the problems of the earlier results, and the starts of the records to retry.

        Return the end of the last complete record, in bytes from the start of the file.
        """
        end = 0
        for number, record in enumerate(self._read_records(), start=1):
            if self._records.header and number == 1:
                self._check_header(record)
            else:
                result = self._decode(record, number)
                if result.problem and result.file in retry:
                    self._retried.add(end)
                    self._problems.pop(result.file, None)
                else:
                    self._problems[result.file] = result.problem
            end += len(record)
        if end == 0:
            self._check_start()
        return end

    def _read_records(self) -> Iterator[bytes]:
        """Yield the complete records with their line ends."""
        self._file.seek(0)
        record = b""
        for line in self._file:
            record += line
            if self._records.is_complete(record):
                yield record
                record = b""

    def _check_header(self, record: bytes) -> None:
        header = self._records.header.rstrip()
        if record.rstrip(b"\r\n") != header:
            message = f"the first line is not {header.decode()}; choose another --out"
            raise UsageError(f"{self._path}: {message}")

    def _decode(self, record: bytes, number: int) -> Result:
        try:
            return self._records.decode(record)
        except ValueError:
            message = f"record {number} is no result of this command; choose another --out"
            raise UsageError(f"{self._path}: {message}") from None

    def _check_start(self) -> None:
        """Check that a file without a complete record starts as a file of records does.

        Any other content is not ours to truncate.
        """
        expected = self._records.header or b'{"file": "'
        self._file.seek(0)
        start = self._file.read(16)
        if not start.startswith(expected) and not expected.startswith(start):
            raise UsageError(f"{self._path}: not a file of records; choose another --out")

    def _rewrite_without(self, dropped: set[int]) -> BinaryIO:
        """Replace the file by a copy without the records that start at ``dropped``.

        Return the new file, open and locked.
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
