"""Pictures in a folder, or in any storage that fsspec reaches.

``domain_id`` is a folder below the root, and an id is the path of a file below that.
"""

from __future__ import annotations

import asyncio
import functools
import posixpath
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from raylens.core.config import PictureSourceConfig
from raylens.core.errors import InvalidRequest, PayloadTooLarge, RaylensError
from raylens.jobs.sources.base import (
    PictureGone,
    PictureSource,
    SourcePicture,
    SourceUnavailable,
    unknown_domain,
    unknown_picture,
)
from raylens.net.media_root import MediaRoot

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic")
"""Files that count as pictures if none is named."""
RETRY_AFTER_S = 5.0
THREADS = 8
"""They may all wait for the storage, so they are not those of the rest of the program."""
P = ParamSpec("P")
T = TypeVar("T")


class FileSource(PictureSource):
    """The files under ``config.url``. Raises ``ImportError`` if fsspec lacks a driver for it."""

    def __init__(self, config: PictureSourceConfig) -> None:
        self._filesystem: Any
        self._filesystem, self._root = fsspec.core.url_to_fs(config.url)
        self._threads = ThreadPoolExecutor(THREADS, "picture-source")
        is_local = isinstance(self._filesystem, LocalFileSystem)
        # Links must not lead out of a local folder.
        self._local = MediaRoot(Path(self._root)) if is_local else None

    async def list_pictures(
        self, domain_id: str, ids: Sequence[str], limit: int
    ) -> list[SourcePicture]:
        return await self._run(self._list, domain_id, ids, limit)

    async def read(self, domain_id: str, picture: SourcePicture, max_bytes: int) -> bytes:
        return await self._run(self._read, domain_id, picture, max_bytes)

    async def _run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in a thread. Raises ``SourceUnavailable`` for a storage's own errors."""
        call = functools.partial(function, *args, **kwargs)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, call)
        except (RaylensError, PictureGone):
            raise
        except Exception as error:  # each storage has its own kinds
            message = f"the pictures can't be read: {type(error).__name__}"
            raise SourceUnavailable(message, None, None, None, RETRY_AFTER_S) from error

    def _list(self, domain_id: str, ids: Sequence[str], limit: int) -> list[SourcePicture]:
        folder = self._folder(domain_id)
        if ids:
            return [
                self._named(folder, number, picture_id) for number, picture_id in enumerate(ids)
            ]
        self._filesystem.invalidate_cache()
        try:
            if not self._filesystem.isdir(folder):
                raise unknown_domain(domain_id)
            paths = sorted(islice(self._find(folder), limit + 1))
        except FileNotFoundError:
            raise unknown_domain(domain_id) from None
        return [
            SourcePicture(path[len(folder) :].lstrip("/"), posixpath.basename(path))
            for path in paths
        ]

    def _find(self, folder: str) -> Iterator[str]:
        """Yield the paths of all pictures in a folder and below."""
        for parent, _, names in self._filesystem.walk(folder, on_error="raise"):
            for name in names:
                path = posixpath.join(parent, name)
                if name.lower().endswith(SUFFIXES) and self._may_read(path):
                    yield path

    def _named(self, folder: str, number: int, picture_id: str) -> SourcePicture:
        path = posixpath.join(folder, _checked(picture_id, f"query.ids.{number}"))
        if not self._filesystem.isfile(path) or not self._may_read(path):
            raise unknown_picture(number, picture_id)
        return SourcePicture(picture_id, posixpath.basename(picture_id))

    def _read(self, domain_id: str, picture: SourcePicture, max_bytes: int) -> bytes:
        path = posixpath.join(self._folder(domain_id), picture.id)
        if not self._may_read(path):
            raise PictureGone
        if self._local is not None:
            return self._local.read(path, max_bytes, "query.ids")
        try:
            data: bytes = self._filesystem.cat_file(path, 0, max_bytes + 1)
        except FileNotFoundError:
            raise PictureGone from None
        if len(data) > max_bytes:
            message = f"query.ids: {picture.name} has over {max_bytes} bytes, which is the limit"
            raise PayloadTooLarge(message, "query.ids", max_bytes, len(data))
        return data

    def _may_read(self, path: str) -> bool:
        """Whether a path is no link that leads out of a local folder."""
        return self._local is None or self._local.has_file(path)

    def _folder(self, domain_id: str) -> str:
        if not domain_id:
            return str(self._root)
        return posixpath.join(self._root, _checked(domain_id, "domain_id"))


def _checked(path: str, field: str) -> str:
    """Return a relative path. Raises ``InvalidRequest`` if it might lead out of its folder."""
    parts = path.split("/")
    if "\\" in path or "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise InvalidRequest(f"{field}: expected a relative path without . and ..", field)
    return path
