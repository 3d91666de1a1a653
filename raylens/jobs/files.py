"""Files that callers upload for jobs, and that jobs write.

A file is a list of blobs, its parts. A job appends a part at a time, so that what it has written so
far can be read, whatever becomes of the job.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from raylens.core.errors import FailureClass, RaylensError


class UnknownFile(RaylensError):
    code = "file_not_found"
    http_status = 404
    failure_class = FailureClass.PERMANENT


@dataclass(frozen=True)
class StoredFile:
    """A file without its contents. Times are in seconds since the epoch, on the store's clock."""

    id: str
    """It sorts by creation time."""
    filename: str
    purpose: str
    created_at: float
    expires_at: float
    size: int = 0
    """Bytes of all parts."""
    owner: str = ""
    """The name of the API key that it belongs to; empty without keys."""
    client: str = ""
    """Whose limits it counts towards: the owner, or an address without keys."""


def unknown_file(file_id: str) -> UnknownFile:
    return UnknownFile(f"file_id: unknown file {file_id[:64]!r}", "file_id")


def shift_file_times(file: StoredFile, seconds: float) -> StoredFile:
    """Return the file with its times moved from one clock to another."""
    created_at = file.created_at + seconds
    return replace(file, created_at=created_at, expires_at=file.expires_at + seconds)
