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

PREFIX = "blob:"
THREADS = 4
_REFERENCE = re.compile(r"blob:[0-9a-f]{64}")


class BlobMissing(Exception):
    """There is no blob with this digest."""


def compute_digest(data: bytes) -> str:
    """Return the SHA-256 of a blob as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def make_reference(digest: str) -> str:
    """Return the reference to a blob that stands for a picture in a job's input."""
    return PREFIX + digest


def is_reference(value: object) -> bool:
    return isinstance(value, str) and _REFERENCE.fullmatch(value) is not None


class Blobs:
    """The blobs under ``url``: a path, or a URL for fsspec such as ``s3://bucket/folder``.

    ``put``, ``get`` and ``remove`` block. ``put_async`` and ``get_async`` run in a thread pool of
    their own, so other blocking work can't delay them.

    Raises ``ImportError``, which names the package, if the protocol's driver isn't installed.
    """

    def __init__(self, url: str) -> None:
        self._files: Any
        self._files, self._root = fsspec.core.url_to_fs(url)
        self._is_local = isinstance(self._files, LocalFileSystem)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="blobs")

    async def put_async(self, digest: str, data: bytes) -> None:
        await asyncio.get_running_loop().run_in_executor(self._threads, self.put, digest, data)

    async def get_async(self, digest: str) -> bytes:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.get, digest)

    def put(self, digest: str, data: bytes) -> None:
        """Store a blob. It is durable when this returns."""
        path = self._path(digest)
        if self._files.exists(path):
            return
        if self._is_local:
            _write_durably(Path(path), data)
        else:
            self._files.pipe_file(path, data)

    def get(self, digest: str) -> bytes:
        """Return a blob's bytes. Raises ``BlobMissing``."""
        try:
            data: bytes = self._files.cat_file(self._path(digest))
        except FileNotFoundError:
            raise BlobMissing(f"no blob {digest} in {self._root}") from None
        return data

    def remove(self, digest: str) -> None:
        """Remove a blob, if it exists."""
        try:
            self._files.rm_file(self._path(digest))
        except FileNotFoundError:
            return

    def _path(self, digest: str) -> str:
        return f"{self._root}/{digest[:2]}/{digest}"


def _write_durably(path: Path, data: bytes) -> None:
    """Write a file atomically: after a crash, ``path`` is complete or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
