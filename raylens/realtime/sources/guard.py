"""Which sources a server may watch for its clients: hosts and folders that its owner has listed."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from raylens.core.errors import InvalidRequest
from raylens.net.address import AddressRefused, AllowList, resolve
from raylens.net.host_name import to_ascii
from raylens.net.lookup import LookUp, look_up
from raylens.realtime.sources.address import parse_url
from raylens.realtime.sources.base import SourceAddress, SourceKind, SourceUnavailable

LOOKUP_TIMEOUT_S = 5.0
_FILE = "file://"


def shown_source(text: str) -> str:
    """Return a source as answers may show it: without a URL's password."""
    return parse_url(text).shown if _is_url(text) else text


def _is_url(text: str) -> bool:
    return "://" in text and not text.startswith(_FILE)


@dataclass(frozen=True)
class SourceGuard:
    """Admits the sources that a configuration allows.

    ``hosts`` are those that may be called, and ``root`` is the folder whose folders may be watched.
    """

    hosts: AllowList
    root: Path | None = None
    look_up: LookUp = look_up

    def parse(self, text: str, field: str = "source") -> SourceAddress:
        """Return the address of a stream or a folder, which need not be there.

        Raises ``InvalidRequest``, also for folders that are not allowed.
        """
        if _is_url(text):
            return parse_url(text)
        path = unquote(text.removeprefix(_FILE)) if text.startswith(_FILE) else text
        return SourceAddress(SourceKind.FOLDER, str(self._resolve(path, field)))

    async def admit(self, address: SourceAddress, field: str = "source") -> SourceAddress:
        """Return an address with the IP address that its host has now.

        Raises ``InvalidRequest`` if it is not allowed, and ``SourceUnavailable`` if the host has no
        address or the folder isn't there at the moment.
        """
        if address.kind is SourceKind.FOLDER:
            folder = await asyncio.to_thread(self._resolve, address.location, field)
            if not await asyncio.to_thread(os.path.isdir, folder):
                raise SourceUnavailable(f"{address.shown}: no such folder", field)
            return address
        host = urlsplit(address.location).hostname or ""
        try:
            async with asyncio.timeout(LOOKUP_TIMEOUT_S):
                name = host if ":" in host else to_ascii(host)
                addresses = await resolve(name, self.hosts, field, self.look_up)
        except AddressRefused as error:
            raise InvalidRequest(f"{error.message} (jobs.watches.allow)", field) from None
        except ValueError:
            raise InvalidRequest(f"{field}: {host[:64]!r} is not a host name", field) from None
        except (OSError, TimeoutError):
            raise SourceUnavailable(f"{host[:64]} has no address", field) from None
        return replace(address, host_address=str(addresses[0]))

    async def check(self, text: str, field: str = "source") -> None:
        """Raise ``InvalidRequest`` if a source may not be watched, or if it is a missing folder.

        A host without an address passes: DNS may be down for a moment.
        """
        address = await asyncio.to_thread(self.parse, text, field)
        try:
            await self.admit(address, field)
        except SourceUnavailable:
            if address.kind is SourceKind.FOLDER:
                raise _no_folder(field) from None

    def _resolve(self, path: str, field: str) -> Path:
        """Return where a folder is, without its links. Raises ``InvalidRequest``."""
        if self.root is None:
            message = f"{field}: no folder may be watched (media_root is not set)"
            raise InvalidRequest(message, field)
        root = self.root.expanduser().resolve()
        with suppress(OSError, ValueError, RuntimeError):
            folder = (root / path).resolve()
            if folder.is_relative_to(root):
                return folder
        raise _no_folder(field)


def _no_folder(field: str) -> InvalidRequest:
    """Return the error for a folder that is missing or elsewhere, which clients must not learn."""
    return InvalidRequest(f"{field}: not a folder in the folder media_root", field)
