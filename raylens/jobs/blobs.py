"""Storage for the pictures of jobs.

Each picture is one blob, stored once under the SHA-256 of its bytes, in a local folder or in any
storage that fsspec supports.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import logging
import math
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from raylens.core.errors import InsufficientStorage
from raylens.jobs.store import STORAGE_RETRY_AFTER_S, StoreUnavailable

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

REFERENCE_PREFIX = "blob:"
THREADS = 4
RETRY_AFTER_S = 5.0
"""``Retry-After`` if the storage fails, in seconds."""
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
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

    ``put``, ``get`` and ``remove`` block. Their ``…_async`` counterparts run in a thread pool of
    their own, so other blocking work can't delay them. Only this user may read local blobs.

    Raises ``ImportError``, which names the package, if the protocol's driver isn't installed.
    """

    def __init__(self, url: str) -> None:
        self._filesystem: Any
        self._filesystem, self._root = fsspec.core.url_to_fs(url)
        self._is_local = isinstance(self._filesystem, LocalFileSystem)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="blobs")

    async def put_async(self, digest: str, data: bytes) -> None:
        await self._run(self.put, digest, data)

    async def get_async(self, digest: str) -> bytes:
        return await self._run(self.get, digest)

    async def remove_async(self, digest: str) -> None:
        await self._run(self.remove, digest)

    async def _run(self, work: Callable[..., Result], *arguments: Any) -> Result:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, work, *arguments)

    def put(self, digest: str, data: bytes) -> None:
        """Store a blob. It is durable when this returns.

        Raises ``InsufficientStorage``, or ``StoreUnavailable`` if the storage fails otherwise.
        """
        path = self._path(digest)
        with _translate_errors("storing a picture failed"):
            if self._filesystem.exists(path):
                return
            if self._is_local:
                Path(self._root).mkdir(mode=0o700, parents=True, exist_ok=True)
                _write_durably(Path(path), data)
            else:
                self._filesystem.pipe_file(path, data)

    def get(self, digest: str) -> bytes:
        """Return a blob's bytes.

        Raises ``BlobMissing`` if there is no such blob, and ``StoreUnavailable`` if the storage
        fails.
        """
        with _translate_errors("reading a picture failed"):
            try:
                data: bytes = self._filesystem.cat_file(self._path(digest))
            except FileNotFoundError:
                raise BlobMissing(digest) from None
        return data

    def remove(self, digest: str) -> None:
        """Remove a blob, if it exists. Raises ``StoreUnavailable`` if the storage fails."""
        with _translate_errors("removing a picture failed"):
            try:
                self._filesystem.rm_file(self._path(digest))
            except FileNotFoundError:
                return

    def free_bytes(self) -> float:
        """Return the free bytes of the disk; infinity for a storage that isn't a local folder."""
        if not self._is_local:
            return math.inf
        folder = Path(self._root)
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free

    def _path(self, digest: str) -> str:
        return f"{self._root}/{digest[:2]}/{digest}"


@contextmanager
def _translate_errors(problem: str) -> Iterator[None]:
    """Log the storage's error, which may name paths, and raise one for callers."""
    try:
        yield
    except BlobMissing:
        raise
    except Exception as error:  # each of fsspec's drivers has its own errors
        logger.warning("%s: %s: %s", problem, type(error).__name__, error)
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            message = "the disk for the pictures and files of jobs is full"
            raise InsufficientStorage(message, None, None, None, STORAGE_RETRY_AFTER_S) from None
        message = f"{problem}; see the server's log"
        raise StoreUnavailable(message, None, None, None, RETRY_AFTER_S) from None


def _write_durably(path: Path, data: bytes) -> None:
    """Write a file atomically. It is durable when this returns.

    After a crash, ``path`` is complete or absent, never partial.
    """
    path.parent.mkdir(mode=0o700, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "wb", opener=_open_private) as file:
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


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
