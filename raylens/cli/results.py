"""Results of the commands for many pictures, and the places where they are stored."""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from raylens.cli.errors import UsageError


class Format(StrEnum):
    JSONL = "jsonl"
    TXT = "txt"
    CSV = "csv"
    COCO = "coco"
    YOLO = "yolo"


@dataclass(frozen=True)
class Result:
    """The result of one picture: an answer, or an error's code and message."""

    file: str
    answer: Any = None
    """A text, or a list of boxes ``{x_min, y_min, x_max, y_max, label}`` in fractions of the
    upright picture's size."""
    model: str | None = None
    error: dict[str, str] | None = None
    job_id: str | None = None
    size: tuple[int, int] | None = None
    """(width, height) of the upright picture, if there are boxes and the size is known."""

    @property
    def problem(self) -> str:
        """The error's message, or its code if the message is empty; empty if there is no error."""
        if not self.error:
            return ""
        return self.error["message"] or self.error["code"]


class ResultStore(AbstractContextManager["ResultStore"], ABC):
    """A store of results that outlasts a run."""

    name: str
    """What messages call it."""
    settings_path: Path | None = None
    """The file that holds the settings of the stored results; None if nothing is stored."""
    scope: Mapping[str, str] = {}
    """Settings beside the request that must stay the same."""

    @property
    @abstractmethod
    def is_empty(self) -> bool:
        """Whether no result is stored."""

    @abstractmethod
    def earlier_problem(self, file: str) -> str | None:
        """Return the ``Result.problem`` that an earlier run stored; None if it stored nothing.

        None, too, for failures that this run retries.
        """

    def keeps(self, file: str) -> bool:
        """Whether a run that begins again leaves the result alone."""
        return False

    def check(self) -> None:
        """Raise ``UsageError`` if the stored results, whose request is unknown, are of another."""
        return

    def check_redo(self) -> None:
        """Raise ``UsageError`` if a new request would leave other results of the earlier one."""
        return

    def begin(self, redo: bool) -> None:
        """Remove what this run's results replace: with ``redo``, all results, and else the failures
        that it retries. Called before the first :meth:`write`. Raises ``OSError``."""
        return

    @abstractmethod
    def write(self, result: Result) -> None:
        """Store a result. Raises ``OSError`` if it cannot be written."""

    def finish(self) -> str:
        """Write what is written at the end of a run only. Return a message, or an empty one.

        Raises ``OSError`` if it cannot be written.
        """
        return ""

    def __exit__(self, *exception: object) -> None:
        return None


class StandardOutput(ResultStore):
    """The standard output, which keeps nothing for a later run.

    ``encode`` makes a record of a result, and ``header`` goes before the first. A text of
    ``encode_all``, if there is one, is written at the end instead. Raises ``UsageError`` if the
    standard output is closed.
    """

    name = "-"

    def __init__(
        self,
        encode: Callable[[Result], bytes],
        header: bytes = b"",
        encode_all: Callable[[list[Result]], str] | None = None,
    ) -> None:
        if sys.stdout is None:
            raise UsageError("--out -: the standard output is closed")
        self._encode = encode
        self._header = header
        self._encode_all = encode_all
        self._results: list[Result] = []

    @property
    def is_empty(self) -> bool:
        return True

    def earlier_problem(self, file: str) -> str | None:
        return None

    def write(self, result: Result) -> None:
        if self._encode_all is None:
            self._write(self._encode(result))
        else:
            self._results.append(result)

    def finish(self) -> str:
        if self._encode_all is not None:
            self._write(self._encode_all(self._results).encode(errors="surrogateescape"))
        return ""

    def _write(self, data: bytes) -> None:
        header, self._header = self._header, b""
        try:
            sys.stdout.buffer.write(header + data)
            sys.stdout.buffer.flush()
        except OSError:
            # Otherwise the interpreter would fail to flush the rest as it exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise


def check_stems(pictures: Sequence[Path], product: str, hint: str) -> None:
    """Raise ``UsageError`` if two pictures differ in their suffix only."""
    owners: dict[Path, Path] = {}
    for picture in pictures:
        owner = owners.setdefault(picture.with_suffix(""), picture)
        if owner != picture:
            raise UsageError(f"{owner} and {picture} would share one {product}; {hint}")


def replace_file(path: Path, text: str) -> None:
    """Write a text file in one step: a reader sees the old text or the new. Raises ``OSError``."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8", errors="surrogateescape")
    part.replace(path)
