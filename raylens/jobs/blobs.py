"""Storage for the pictures of jobs.

Each picture is one blob, stored once under the SHA-256 of its bytes, in a local folder or in any
storage that fsspec supports.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

REFERENCE_PREFIX = "blob:"
THREADS = 4
_REFERENCE = re.compile(r"blob:[0-9a-f]{64}")


class BlobMissing(Exception):
    """There is no blob with this digest."""


def compute_digest(data: bytes) -> str:
    """Return the SHA-256 of a blob as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def make_reference(digest: str) -> str:
    """Return ``blob:<digest>``, which replaces a picture in a job's input."""
    return REFERENCE_PREFIX + digest


def is_reference(value: object) -> bool:
    return isinstance(value, str) and _REFERENCE.fullmatch(value) is not None


class BlobStorage:
    """The blobs under ``url``: a path, or a URL for fsspec such as ``s3://bucket/folder``.

    ``put``, ``get`` and ``remove`` block. ``put_async`` and ``get_async`` run in a thread pool of
    their own, so other blocking work can't delay them.

    Raises ``ImportError``, which names the package, if the protocol's driver isn't installed.
    """

    def __init__(self, url: str) -> None:
        self._filesystem: Any
        self._filesystem, self._root = fsspec.core.url_to_fs(url)
        self._is_local = isinstance(self._filesystem, LocalFileSystem)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="blobs")

    async def put_async(self, digest: str, data: bytes) -> None:
        await asyncio.get_running_loop().run_in_executor(self._threads, self.put, digest, data)

    async def get_async(self, digest: str) -> bytes:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.get, digest)

    def put(self, digest: str, data: bytes) -> None:
        """Store a blob. It is durable when this returns.

        Raises ``OSError`` if the storage fails.
        """
        path = self._path(digest)
        if self._filesystem.exists(path):
            return
        if self._is_local:
            _write_durably(Path(path), data)
        else:
            self._filesystem.pipe_file(path, data)

    def get(self, digest: str) -> bytes:
        """Return a blob's bytes.

        Raises ``BlobMissing`` if there is no such blob, and ``OSError`` if the storage fails.
        """
        try:
            data: bytes = self._filesystem.cat_file(self._path(digest))
        except FileNotFoundError:
            raise BlobMissing(f"no blob {digest} in {self._root}") from None
        return data

    def remove(self, digest: str) -> None:
        """Remove a blob, if it exists. Raises ``OSError`` if the storage fails."""
        try:
            self._filesystem.rm_file(self._path(digest))
        except FileNotFoundError:
            return

    def _path(self, digest: str) -> str:
        return f"{self._root}/{digest[:2]}/{digest}"


def _write_durably(path: Path, data: bytes) -> None:
    """Write a file atomically. It is durable when this returns.

    After a crash, ``path`` is complete or absent, never partial.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder_fd = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder_fd)
    finally:
        os.close(folder_fd)
