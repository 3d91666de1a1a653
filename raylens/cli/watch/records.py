"""JSON lines of results and events."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from raylens.cli.errors import UsageError
from raylens.cli.watch.plan import STDOUT


class JsonLines:
    """A file of JSON lines, or the standard output. Each line can be read at once.

    What the file held is kept until the first line or :meth:`begin`.
    """

    def __init__(self, path: Path, option: str) -> None:
        """Raises ``UsageError`` if the file can't be written."""
        self._is_stdout = path == STDOUT
        self._has_begun = self._is_stdout
        self._file: IO[bytes]
        if self._is_stdout:
            if sys.stdout is None:
                raise UsageError(f"{option} -: the standard output is closed")
            self._file = sys.stdout.buffer
            return
        try:
            self._file = path.open("ab")
        except OSError as error:
            raise UsageError(f"{option}: {path}: {error.strerror or error}") from None

    def begin(self) -> None:
        """Empty the file, once."""
        if not self._has_begun:
            self._has_begun = True
            if stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
                self._file.truncate(0)

    def write(self, record: Mapping[str, Any]) -> None:
        """Raises ``OSError``."""
        self.begin()
        try:
            self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            self._file.flush()
        except OSError:
            if self._is_stdout:
                # Otherwise the interpreter would fail to flush the rest as it exits.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise

    def close(self) -> None:
        if not self._is_stdout:
            self._file.close()
