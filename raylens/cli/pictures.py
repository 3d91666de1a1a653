"""Discovery of pictures among files and in folders."""

from __future__ import annotations

import os
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from preprocessing.formats import HEIC, SUPPORTED, sniff
from raylens.cli.errors import UsageError

SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp", ".mpo", ".png", ".apng", ".webp"),
        *(".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif", ".heic", ".heif", ".hif"),
    }
)
"""Suffixes of pictures that the server reads."""
SETTINGS_PREFIX = ".raylens-"
"""Prefix of the files in which an earlier run left its settings among the pictures."""
_PICTURES = frozenset({*SUPPORTED, HEIC}) - {"TIFF"}
"""Formats by which a file without such a suffix is a picture. Raw photographs are TIFF files, too,
which the server can't develop."""
_SNIFFED_BYTES = 1024
_DIGITS = re.compile("([0-9]+)")


@dataclass(frozen=True)
class Discovery:
    """The pictures, each once, in natural order, and what was passed over."""

    pictures: list[Path]
    passed_over: Counter[str] = field(default_factory=Counter)
    """Number of files by reason."""

    def describe_passed_over(self) -> str:
        """Return the reasons in one line; empty if there are none."""
        if not self.passed_over:
            return ""
        reasons = (f"{count} {reason}" for reason, count in self.passed_over.most_common())
        total = self.passed_over.total()
        return f"passed over {total} {'file' if total == 1 else 'files'}: {', '.join(reasons)}"


def find_pictures(paths: Iterable[Path], recursive: bool = True) -> Discovery:
    """Find the pictures among files and in folders.

    In a folder, a file is a picture by its suffix or its first bytes; links to folders are
    followed, each folder once. Raises ``UsageError`` if a path does not exist, or if a file that is
    named outright cannot be read or is no picture.
    """
    pictures: dict[str, Path] = {}
    passed_over: Counter[str] = Counter()
    seen: set[tuple[int, int]] = set()
    for path in paths:
        if not os.path.lexists(path):
            raise UsageError(f"{path}: no such file or folder")
        if not os.path.isdir(path):
            _check_named_file(path)
            pictures.setdefault(os.path.abspath(path), path)
            continue
        for candidate in _walk(path, recursive, seen, passed_over):
            reason = "" if os.path.isdir(candidate) else _reason_against(candidate)
            if reason:
                passed_over[reason] += 1
            else:
                pictures.setdefault(os.path.abspath(candidate), candidate)
    return Discovery(sorted(pictures.values(), key=natural_key), passed_over)


def _check_named_file(path: Path) -> None:
    """Raise ``UsageError`` unless a file that is named outright can be read, and is a picture."""
    try:
        data = _read_start(path)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    if not data:
        raise UsageError(f"{path}: the file is empty (0 bytes)")
    kind = sniff(data)
    if kind not in SUPPORTED and kind != HEIC:
        raise UsageError(f"{path}: not a picture{f', but {kind}' if kind else ''}")


def _reason_against(path: Path) -> str:
    """Return why a file in a folder is no picture; empty if it is one."""
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return ""
    try:
        if sniff(_read_start(path)) in _PICTURES:
            return ""
    except OSError:
        return "unreadable"
    return suffix or "without a suffix"


def _read_start(path: Path) -> bytes:
    """Return a regular file's first bytes. Raises ``OSError``."""
    if not path.is_file():
        path.stat()  # says why, if there is an error
        raise OSError("not a regular file")
    with path.open("rb") as file:
        return file.read(_SNIFFED_BYTES)


def _walk(
    folder: Path, recursive: bool, seen: set[tuple[int, int]], passed_over: Counter[str]
) -> Iterator[Path]:
    """Yield the files in a folder, and the folders that cannot be listed.

    Such a folder is treated as a picture. It fails when it is read, and that failure shows the user
    that pictures are missing. ``seen`` are the folders that were listed before: a link may lead
    back to one.
    """
    errors: list[OSError] = []
    for parent, folders, files in _walk_links_last(folder, errors):
        identity = _identity(parent)
        if identity in seen:
            folders.clear()
            continue
        seen.add(identity)
        visible = [name for name in folders if not name.startswith(".")]
        passed_over["hidden"] += len(folders) - len(visible)
        folders[:] = visible if recursive else []
        for name in sorted(files):
            if name.startswith(SETTINGS_PREFIX):
                continue
            if name.startswith("."):
                passed_over["hidden"] += 1
            else:
                yield Path(parent, name)
    passed_over += Counter()  # drops the zeros
    yield from (Path(error.filename) for error in errors)


def _walk_links_last(
    folder: Path, errors: list[OSError]
) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walk as ``os.walk`` does, in a fixed order, and into linked folders after all real ones.

    So the files in a folder that is also linked have the same names in every run.
    """
    starts = deque([os.fspath(folder)])
    while starts:
        for parent, folders, files in os.walk(starts.popleft(), onerror=errors.append):
            yield parent, folders, files
            paths = {name: os.path.join(parent, name) for name in sorted(folders)}
            starts.extend(path for path in paths.values() if os.path.islink(path))
            folders[:] = [name for name, path in paths.items() if not os.path.islink(path)]


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def natural_key(path: Path) -> tuple[list[list[str | int]], str]:
    """Return a sort key that puts ``2.png`` before ``10.png``."""
    return [_split_numbers(part.casefold()) for part in path.parts], str(path)


def _split_numbers(text: str) -> list[str | int]:
    """Split ``a10b`` into ``["a", 10, "b"]``. Text comes first, so any two results compare."""
    return [int(piece) if index % 2 else piece for index, piece in enumerate(_DIGITS.split(text))]
