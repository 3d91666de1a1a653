"""Discovery of pictures among files and in folders."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from raylens.cli.errors import UsageError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"})
_DIGITS = re.compile("([0-9]+)")


def find_pictures(paths: Iterable[Path], recursive: bool = True) -> list[Path]:
    """Return each picture among files and in folders once, in natural order.

    Files and folders inside a folder are skipped if their name begins with a dot. Raises
    ``UsageError`` if a path does not exist.
    """
    pictures: dict[str, Path] = {}
    for path in paths:
        if not os.path.lexists(path):
            raise UsageError(f"{path}: no such file or folder")
        candidates = _walk(path, recursive) if os.path.isdir(path) else [path]
        for candidate in candidates:
            if candidate.suffix.lower() in SUFFIXES or os.path.isdir(candidate):
                pictures.setdefault(os.path.abspath(candidate), candidate)
    return sorted(pictures.values(), key=_natural_key)


def _walk(folder: Path, recursive: bool) -> Iterator[Path]:
    """Yield the files in a folder, and the folders that cannot be listed.

    Such a folder is treated as a picture. It fails when it is read, and that failure shows the user
    that pictures are missing.
    """
    errors: list[OSError] = []
    for parent, folders, files in os.walk(folder, onerror=errors.append):
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
        yield from (Path(parent, name) for name in files if not name.startswith("."))
    yield from (Path(error.filename) for error in errors)


def _natural_key(path: Path) -> tuple[list[list[str | int]], str]:
    """Return a sort key that puts ``2.png`` before ``10.png``."""
    return [_split_numbers(part.casefold()) for part in path.parts], str(path)


def _split_numbers(text: str) -> list[str | int]:
    """Split ``a10b`` into ``["a", 10, "b"]``. Text comes first, so any two results compare."""
    return [int(piece) if index % 2 else piece for index, piece in enumerate(_DIGITS.split(text))]
