"""Results of the commands for many pictures, and the places where they are stored."""

from __future__ import annotations

import json
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
from raylens.cli.pictures import SETTINGS_PREFIX

TEXT_SETTINGS = f"{SETTINGS_PREFIX}texts.json"
"""File of the settings of text files, in a folder of pictures."""
TEXT_LIST = f"{SETTINGS_PREFIX}texts.list"
"""File of the names of text files, as JSON lines."""


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


class TextFiles(ResultStore):
    """A text file beside each picture, written atomically. Failures are not stored.

    A list of the files that were written is kept in ``root``, or in the nearest folder above it
    that has one: texts by hand are never replaced. Raises ``UsageError`` if two pictures would have
    the same text file.
    """

    def __init__(self, root: Path, pictures: Sequence[Path]) -> None:
        check_stems(pictures, "text file", "use --format jsonl --out …")
        self.name = str(root)
        self._home = _find_home(root)
        self.settings_path = self._home / TEXT_SETTINGS
        self._list = self._home / TEXT_LIST
        self._written = set(_read_lines(self._list))
        """Names of the text files of earlier runs, relative to the list."""
        self._texts = {self._text_name(picture) for picture in pictures}

    @property
    def is_empty(self) -> bool:
        return not self._written

    def earlier_problem(self, file: str) -> str | None:
        return "" if os.path.exists(Path(file).with_suffix(".txt")) else None

    def keeps(self, file: str) -> bool:
        return self._text_name(Path(file)) not in self._written

    def check_redo(self) -> None:
        others = len(self._written - self._texts)
        if others:
            raise UsageError(
                f"{self.name}: {others} texts beside other pictures, below {self._home}, have the"
                " earlier request; redo them, too, or use --format jsonl --out …"
            )

    def begin(self, redo: bool) -> None:
        if redo:
            for name in sorted(self._written & self._texts):
                (self._home / name).unlink(missing_ok=True)

    def write(self, result: Result) -> None:
        if result.answer is None:
            return
        path = Path(result.file).with_suffix(".txt")
        name = self._text_name(path)
        if name not in self._written:
            self._written.add(name)
            with self._list.open("a", encoding="utf-8", errors="surrogateescape") as file:
                file.write(json.dumps(name) + "\n")
        replace_file(path, f"{result.answer}\n")

    def _text_name(self, picture: Path) -> str:
        return os.path.relpath(picture.with_suffix(".txt"), self._home)


def _find_home(root: Path) -> Path:
    """Return the nearest folder from ``root`` upwards with settings of earlier texts.

    Without any, it is ``root`` itself.
    """
    folder = Path(os.path.abspath(root))
    homes = (parent for parent in (folder, *folder.parents) if (parent / TEXT_SETTINGS).exists())
    return next(homes, root)


def _read_lines(path: Path) -> list[str]:
    """Return the names in a list; a line that was cut off is left out."""
    try:
        lines = path.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    except OSError:
        return []
    return [json.loads(line) for line in lines[:-1]]


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
