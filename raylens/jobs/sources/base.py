"""The interface of a picture source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from raylens.core.errors import FailureClass, InvalidRequest, RaylensError


class SourceUnavailable(RaylensError):
    """The source can't be reached, or doesn't answer."""

    code = "picture_source_unavailable"
    http_status = 503
    failure_class = FailureClass.CAPACITY


class PictureGone(Exception):
    """A picture that was listed can't be read any more."""


@dataclass(frozen=True)
class SourcePicture:
    """A picture in a source."""

    id: str
    name: str
    """For messages, and for the order of pictures."""
    taken_at: float | None = None
    """In seconds since the epoch, if the source knows."""


class PictureSource(Protocol):
    """Where ``query.ids`` and ``domain_id`` of a job lead.

    A plugin is a class of this interface, under the entry-point group ``raylens.picture_sources``.
    Its constructor takes a :class:`raylens.core.config.PictureSourceConfig`. Errors are about the
    request's fields ``domain_id`` and ``query.ids``.
    """

    async def list_pictures(
        self, domain_id: str, ids: Sequence[str], limit: int
    ) -> list[SourcePicture]:
        """Return the pictures with these ids, in their order; without ids, all of the domain.

        A list of more than ``limit`` will be refused, so it may be cut off there. Raises
        ``InvalidRequest`` if there is no such domain or picture, and ``SourceUnavailable``.
        """
        ...

    async def read(self, domain_id: str, picture: SourcePicture, max_bytes: int) -> bytes:
        """Return a picture's file.

        Raises ``PayloadTooLarge``, ``PictureGone`` and ``SourceUnavailable``.
        """
        ...


def unknown_picture(number: int, picture_id: str) -> InvalidRequest:
    field = f"query.ids.{number}"
    return InvalidRequest(f"{field}: there is no picture {picture_id[:80]!r}", field)


def unknown_domain(domain_id: str) -> InvalidRequest:
    return InvalidRequest(f"domain_id: there is no domain {domain_id[:80]!r}", "domain_id")
