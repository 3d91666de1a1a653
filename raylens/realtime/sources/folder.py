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
            names = list_pictures(folder, self._options)
            paths = sorted((folder / name for name in names), key=natural_key)
        except OSError as error:
            reason = f"source: {folder}: {error.strerror or error}"
            raise InvalidRequest(reason, "source") from None
        if not paths:
            raise InvalidRequest(f"source: {folder}: no pictures in this folder", "source")
        return paths


class FollowedFolder(ClosableSource):
    """The pictures that come into a folder, in the order in which they are complete.

    Pictures that were there when it was opened are skipped. A file that can't be decoded is tried
    again while it changes, and for a while after.
    """

    POLL_S = 0.1
    MAX_SHARE = 0.1
    """Of its time that it spends on looks at the folder, which may have very many files."""
    SETTLED_S = 2.0
    """A broken file that hasn't changed for this long is reported, and not tried again."""

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
        self._is_open = False
        self._opened_at = 0.0
        self._look_due_at = 0.0
        self._found: deque[str] = deque()
        """Files that had changed at the last look, and have not been tried since."""
        self._done: dict[str, FileState] = {}
        """The files that need no other try, as they were when they were tried."""
        self._unfinished: dict[str, tuple[FileState, float]] = {}
        """Files that can't be decoded yet, with the time since which they haven't changed."""

    def _read(self) -> SourceFrame | None:
        if not self._is_open:
            self._open()
        while True:
            frame = self._take()
            if frame is not None:
                return frame
            if self._wait(self._look_due_at - self._clock()):
                raise self._unavailable("it is closed")
            self._find()

    def _wait(self, seconds: float) -> bool:
        """Return whether the source was closed in the meantime."""
        return self._closed.wait(seconds)

    def _open(self) -> None:
        self._opened_at = self._clock()
        self._done = self._look()
        self._is_open = True

    def _take(self) -> SourceFrame | None:
        """Return the next picture of those that were found."""
        while self._found and not self._closed.is_set():
            pixels = self._try(self._found.popleft())
            if pixels is not None:
                return SourceFrame(pixels, self._clock() - self._opened_at)
        return None

    def _find(self) -> None:
        """Find the files that have changed since they were frames."""
        states = self._look()
        for names in (self._done, self._unfinished):
            for name in names.keys() - states.keys():  # removed since
                del names[name]
        changed = [name for name, state in states.items() if self._done.get(name) != state]
        changed.sort(key=lambda name: (states[name][1], natural_key(Path(name))))
        self._found.extend(changed)

    def _try(self, name: str) -> Pixels | None:
        """Return a file's picture. If it has none, note whether it must be tried again."""
        path, now = self._folder / name, self._clock()
        try:
            state = state_of(path.stat())
        except OSError:  # removed since
            return None
        known, since = self._unfinished.get(name, (None, 0.0))
        if known == state and now < since + self.SETTLED_S:
            return None
        try:
            pixels = read_picture(path, self._options)
        except BrokenPicture as error:
            if known != state:
                self._unfinished[name] = (state, now)
                return None
            self._report(f"{path}: {error}")
            pixels = None
        self._done[name] = state
        self._unfinished.pop(name, None)
        return pixels

    def _look(self) -> dict[str, FileState]:
        began_at = self._clock()
        try:
            states = list_pictures(self._folder, self._options)
        except OSError as error:
            raise self._unavailable(error.strerror or str(error)) from None
        ended_at = self._clock()
        self._look_due_at = ended_at + max(self.POLL_S, (ended_at - began_at) / self.MAX_SHARE)
        return states


def list_pictures(folder: Path, options: SourceOptions) -> dict[str, FileState]:
    """Return the pictures in a folder by name, without hidden ones. Raises ``OSError``."""
    states = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            suffix = os.path.splitext(entry.name)[1].lower()
            if suffix not in SUFFIXES or entry.name.startswith("."):
                continue
            try:
                if entry.is_file(follow_symlinks=options.follows_links):
                    states[entry.name] = state_of(entry.stat())
            except OSError:  # removed since
                continue
    return states


def state_of(status: os.stat_result) -> FileState:
    return status.st_size, status.st_mtime_ns


def read_picture(path: Path, options: SourceOptions) -> Pixels:
    """Return a file's picture. Raises ``BrokenPicture``."""
    try:
        with open(path, "rb", opener=os.open if options.follows_links else open_no_link) as file:
            data = file.read(options.max_picture_bytes + 1)
    except OSError as error:
        raise BrokenPicture(error.strerror or str(error)) from None
    return decode_picture(data, options)


def open_no_link(path: str, flags: int) -> int:
    """Open a file that may have become a link since the look. Raises ``OSError`` if it has."""
    return os.open(path, flags | os.O_NOFOLLOW)


def natural_key(path: Path) -> tuple[list[str | int], str]:
    """Return a sort key that puts ``2.png`` before ``10.png``."""
    pieces = _DIGITS.split(path.name.casefold())
    return [int(piece) if index % 2 else piece for index, piece in enumerate(pieces)], path.name
