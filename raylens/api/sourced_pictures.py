"""Pictures of jobs that ``query.ids`` and ``domain_id`` name in a source."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raylens.api.context import gather
from raylens.core.config import AppConfig
from raylens.core.errors import InvalidRequest, PayloadTooLarge
from raylens.jobs.blobs import compute_digest
from raylens.jobs.sources.base import (
    PictureGone,
    PictureSource,
    SourcePicture,
    SourceUnavailable,
)
from raylens.jobs.sources.registry import make_source

READS_AT_ONCE = 8
TIMEOUT_S = 60.0
"""For all pictures of a job; its sender waits meanwhile."""
RETRY_AFTER_S = 5.0
MAX_ID_CHARS = 1024


@dataclass(frozen=True)
class SourcedPicture:
    data: bytes
    digest: str
    field: str
    """The request's name of it."""
    taken_at: float | None


class SourcedPictures:
    """Reads pictures from the configured source. Raises ``ValueError`` and ``ImportError`` if that
    can't be made."""

    def __init__(self, config: AppConfig, source: PictureSource | None = None) -> None:
        self._source = source or make_source(config.jobs)
        self._max_pictures = config.jobs.max_images
        self._max_picture_bytes = config.limits.max_image_bytes
        self._max_bytes = config.jobs.picture_source.max_bytes
        self._domain_id = config.jobs.picture_source.domain_id

    async def read(
        self,
        query: Mapping[str, Any] | None,
        domain_id: str | None,
        *,
        has_pictures: bool,
        takes_many: bool,
    ) -> list[SourcedPicture]:
        """Return the pictures that a job names; none if it names none.

        A ``query`` without ids, or a ``domain_id`` alone, names all pictures of the domain, unless
        the job has pictures of its own, or doesn't take many. Raises ``InvalidRequest``,
        ``PayloadTooLarge``, and ``SourceUnavailable``.
        """
        ids = _read_ids((query or {}).get("ids"), self._max_pictures)
        if self._source is None:
            if ids or (query is not None and "ids" in query and not has_pictures):
                raise InvalidRequest(
                    "query.ids: no source of pictures is configured; send the pictures in"
                    " input.images, or set jobs.picture_source",
                    "query.ids",
                )
            return []
        if has_pictures:
            if ids:
                message = "query.ids: expected either ids or pictures in input, not both"
                raise InvalidRequest(message, "query.ids")
            return []
        if not ids and (not takes_many or (query is None and domain_id is None)):
            return []
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await self._list_and_read(self._source, domain_id or self._domain_id, ids)
        except TimeoutError:
            message = f"the pictures were not there in {TIMEOUT_S:g} seconds"
            raise SourceUnavailable(message, None, None, None, RETRY_AFTER_S) from None

    async def _list_and_read(
        self, source: PictureSource, domain: str, ids: Sequence[str]
    ) -> list[SourcedPicture]:
        pictures = await source.list_pictures(domain, ids, self._max_pictures)
        field = "query.ids" if ids else "domain_id"
        if not pictures:
            raise InvalidRequest(f"{field}: there are no pictures", field)
        if len(pictures) > self._max_pictures:
            limit = self._max_pictures
            message = f"{field}: over {limit} pictures, which is the limit"
            raise InvalidRequest(message, field, limit, len(pictures))
        return await self._read_all(source, domain, pictures)

    async def _read_all(
        self, source: PictureSource, domain_id: str, pictures: Sequence[SourcePicture]
    ) -> list[SourcedPicture]:
        slots = asyncio.Semaphore(READS_AT_ONCE)
        total = 0

        async def read(number: int, picture: SourcePicture) -> SourcedPicture:
            nonlocal total
            field = f"query.ids.{number}"
            async with slots:
                try:
                    data = await source.read(domain_id, picture, self._max_picture_bytes)
                except PictureGone:
                    message = f"{field}: the picture {picture.name[:80]!r} is gone"
                    raise InvalidRequest(message, field) from None
            total += len(data)
            if total > self._max_bytes:
                message = f"query.ids: over {self._max_bytes} bytes of pictures, which is the limit"
                raise PayloadTooLarge(message, "query.ids", self._max_bytes, total)
            digest = await asyncio.to_thread(compute_digest, data)
            return SourcedPicture(data, digest, field, picture.taken_at)

        return await gather(read(number, picture) for number, picture in enumerate(pictures))


def _read_ids(ids: Any, limit: int) -> list[str]:
    """Return ``query.ids``. Raises ``InvalidRequest`` unless they are texts, each once."""
    if ids is None:
        return []
    if not isinstance(ids, list) or not all(
        isinstance(picture_id, str) and 0 < len(picture_id) <= MAX_ID_CHARS for picture_id in ids
    ):
        raise InvalidRequest("query.ids: expected a list of ids of pictures", "query.ids")
    if len(ids) > limit:
        message = f"query.ids: {len(ids)} ids; the limit is {limit}"
        raise InvalidRequest(message, "query.ids", limit, len(ids))
    if len(set(ids)) < len(ids):
        raise InvalidRequest("query.ids: an id is given twice", "query.ids")
    return list(ids)
