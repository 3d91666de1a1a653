"""Folders of pictures: as a video, or as a live source to which a camera adds pictures."""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from raylens.core.errors import InvalidRequest
from raylens.realtime.overlay import Pixels
from raylens.realtime.sources.base import (
    ClosableSource,
    ReportProblem,
    SourceAddress,
    SourceFrame,
    SourceOptions,
)
from raylens.realtime.sources.pictures import SUFFIXES, BrokenPicture, decode_picture

_DIGITS = re.compile("([0-9]+)")
FileState = tuple[int, int]
"""The size and the time of the last change, in nanoseconds."""


class FolderSource(ClosableSource):
    """The pictures of a folder in natural order, ``2.png`` before ``10.png``.

    They are a video with a fixed interval. Broken ones are reported and skipped.
    """

    is_live = False

    def __init__(
        self, address: SourceAddress, options: SourceOptions, report: ReportProblem
    ) -> None:
        super().__init__(address)
        self._options = options
        self._report = report
        self._paths: deque[Path] | None = None
        self._count = 0

    def _read(self) -> SourceFrame | None:
        if self._paths is None:
            self._paths = deque(self._list())
        while self._paths:
            path = self._paths.popleft()
            number, self._count = self._count, self._count + 1
            try:
                pixels = read_picture(path, self._options)
            except BrokenPicture as error:
                self._report(f"{path}: {error}")
                continue
            return SourceFrame(pixels, number * self._options.picture_interval_s)
        return None

    def _list(self) -> list[Path]:
        folder = Path(self.address.location)
        try:
            paths = sorted((folder / name for name in list_pictures(folder)), key=natural_key)
        except OSError as error:
            reason = f"source: {folder}: {error.strerror or error}"
            raise InvalidRequest(reason, "source") from None
        if not paths:
            raise InvalidRequest(f"source: {folder}: no pictures in this folder", "source")
        return paths


class FollowedFolder(ClosableSource):
    """The pictures that come into a folder, in the order in which they are complete.

    Those that are there from the beginning, or that were put there while nobody read, are none. A
    file that can't be decoded is tried again while it changes, and for a while after.
    """

    POLL_S = 0.1
    MAX_SHARE = 0.1
    """Of its time, which it may spend with looking: a folder may have very many files."""
    SETTLED_S = 2.0
    """A broken file that has not changed for so long stays broken."""

    def __init__(
        self,
        address: SourceAddress,
        options: SourceOptions,
        report: ReportProblem,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(address)
        self._folder = Path(address.location)
        self._options = options
        self._report = report
        self._clock = clock
        self._opened_at = 0.0
        self._done: dict[str, FileState] | None = None
        """The files that are frames already, or never will be, as they were."""
        self._unfinished: dict[str, tuple[FileState, float]] = {}
        """Files that can't be decoded yet, and since when they are as they are."""

    def _read(self) -> SourceFrame | None:
        if self._done is None:
            self._opened_at = self._clock()
            self._done = self._look()
        while True:
            looked_at = self._clock()
            frame = self._find_frame(self._done)
            if frame is not None:
                return frame
            wait_s = max(self.POLL_S, (self._clock() - looked_at) / self.MAX_SHARE)
            if self._closed.wait(wait_s):
                raise self._unavailable("it is closed")

    def _find_frame(self, done: dict[str, FileState]) -> SourceFrame | None:
        states = self._look()
        for names in (done, self._unfinished):
            for name in names.keys() - states.keys():  # removed since
                del names[name]
        changed = [name for name, state in states.items() if done.get(name) != state]
        for name in sorted(changed, key=lambda name: (states[name][1], natural_key(Path(name)))):
            pixels = self._try(name, states[name], done)
            if pixels is not None:
                return SourceFrame(pixels, self._clock() - self._opened_at)
        return None

    def _try(self, name: str, state: FileState, done: dict[str, FileState]) -> Pixels | None:
        """Return a file's picture. If it has none, note whether it may still get one."""
        known, since = self._unfinished.get(name, (None, 0.0))
        now = self._clock()
        if known == state and now < since + self.SETTLED_S:
            return None
        try:
            pixels = read_picture(self._folder / name, self._options)
        except BrokenPicture as error:
            if known != state:
                self._unfinished[name] = (state, now)
                return None
            self._report(f"{self._folder / name}: {error}")
            pixels = None
        done[name] = state
        self._unfinished.pop(name, None)
        return pixels

    def _look(self) -> dict[str, FileState]:
        try:
            return list_pictures(self._folder)
        except OSError as error:
            raise self._unavailable(error.strerror or str(error)) from None


def list_pictures(folder: Path) -> dict[str, FileState]:
    """Return the pictures in a folder by name, without hidden ones. Raises ``OSError``."""
    states = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            suffix = os.path.splitext(entry.name)[1].lower()
            if suffix not in SUFFIXES or entry.name.startswith("."):
                continue
            try:
                status = entry.stat()
                if entry.is_file():
                    states[entry.name] = (status.st_size, status.st_mtime_ns)
            except OSError:  # removed since
                continue
    return states


def read_picture(path: Path, options: SourceOptions) -> Pixels:
    """Return a file's picture. Raises ``BrokenPicture``."""
    try:
        with path.open("rb") as file:
            data = file.read(options.max_picture_bytes + 1)
    except OSError as error:
        raise BrokenPicture(error.strerror or str(error)) from None
    return decode_picture(data, options)


def natural_key(path: Path) -> tuple[list[str | int], str]:
    """Return a sort key that puts ``2.png`` before ``10.png``."""
    pieces = _DIGITS.split(path.name.casefold())
    return [int(piece) if index % 2 else piece for index, piece in enumerate(pieces)], path.name
