"""Pictures of jobs, kept once under the SHA-256 of their bytes: in a folder, or wherever fsspec
reaches."""

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
    """No blob has this digest."""


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def reference(digest: str) -> str:
    """How a job's input names a picture."""
    return PREFIX + digest


def is_reference(value: object) -> bool:
    return isinstance(value, str) and _REFERENCE.fullmatch(value) is not None


class Blobs:
    """``put``, ``get`` and ``remove`` block; ``store`` and ``load`` are the first two in threads of
    their own, which nothing else keeps busy. ``url`` is a path, or a URL of fsspec's such as
    ``s3://bucket/folder``.

    Raises ``ImportError``, which names the package, for a protocol whose driver isn't installed.
    """

    def __init__(self, url: str) -> None:
        self._files: Any
        self._files, self._root = fsspec.core.url_to_fs(url)
        self._is_local = isinstance(self._files, LocalFileSystem)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="blobs")

    async def store(self, digest: str, data: bytes) -> None:
        await asyncio.get_running_loop().run_in_executor(self._threads, self.put, digest, data)

    async def load(self, digest: str) -> bytes:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.get, digest)

    def put(self, digest: str, data: bytes) -> None:
        """Durable once it returns."""
        path = self._path(digest)
        if self._files.exists(path):
            return
        if self._is_local:
            _write_durably(Path(path), data)
        else:
            self._files.pipe_file(path, data)

    def get(self, digest: str) -> bytes:
        """Raises ``BlobMissing``."""
        try:
            data: bytes = self._files.cat_file(self._path(digest))
        except FileNotFoundError:
            raise BlobMissing(f"no blob {digest} in {self._root}") from None
        return data

    def remove(self, digest: str) -> None:
        """One that isn't there is as good as removed."""
        try:
            self._files.rm_file(self._path(digest))
        except FileNotFoundError:
            return

    def _path(self, digest: str) -> str:
        return f"{self._root}/{digest[:2]}/{digest}"


def _write_durably(path: Path, data: bytes) -> None:
    """The whole file under its name or none, whatever happens meanwhile."""
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
