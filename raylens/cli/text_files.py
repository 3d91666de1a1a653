"""Results as a text file beside each picture."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from raylens.cli.errors import UsageError
from raylens.cli.pictures import SETTINGS_PREFIX
from raylens.cli.results import Result, ResultStore, check_stems, replace_file

TEXT_SETTINGS = f"{SETTINGS_PREFIX}texts.json"
"""File of the settings of text files, in a folder of pictures."""
TEXT_LIST = f"{SETTINGS_PREFIX}texts.list"
"""File of the names of text files, as JSON lines."""


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
