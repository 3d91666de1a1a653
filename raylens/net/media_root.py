"""Files of this machine that requests may name, all of them below one folder."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from raylens.core.errors import InvalidRequest, PayloadTooLarge


class MediaRoot:
    """A folder whose files may be read. Links must not lead out of it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.expanduser().resolve()

    def has_file(self, path: str) -> bool:
        """Whether a path, relative to the folder or absolute, is a file in the folder."""
        try:
            os.close(self._open(path))
        except (OSError, ValueError, RuntimeError):
            return False
        return True

    def read(self, path: str, max_bytes: int, field: str) -> bytes:
        """Return the content of a file. This blocks.

        Raises ``InvalidRequest`` if there is no such file in the folder. A file elsewhere gives the
        same error as one that doesn't exist. Raises ``PayloadTooLarge`` over ``max_bytes``.
        """
        try:
            descriptor = self._open(path)
        except (OSError, ValueError, RuntimeError):
            message = f"{field}: not a file in the folder media_root"
            raise InvalidRequest(message, field) from None
        with open(descriptor, "rb") as file:
            size = os.fstat(descriptor).st_size
            data = b"" if size > max_bytes else file.read(max_bytes + 1)
        size = max(size, len(data))
        if size > max_bytes:
            message = f"{field}: a file of {size} bytes; the limit is {max_bytes} bytes"
            raise PayloadTooLarge(message, field, max_bytes, size)
        return data

    def _open(self, path: str) -> int:
        """Open a regular file in the folder.

        Raises ``OSError``, ``ValueError``, and ``RuntimeError`` for a circle of links.

        The path of the open file is checked: a link that changes between a check and an open would
        gain nothing. Opening a pipe or a device without ``O_NONBLOCK`` might block for ever.
        """
        target = (self._folder / path).resolve()
        if not target.is_relative_to(self._folder):
            raise PermissionError
        descriptor = os.open(target, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            opened = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            if not opened.is_relative_to(self._folder):
                raise PermissionError
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise PermissionError
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor
