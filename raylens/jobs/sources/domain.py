"""Pictures of a domain data service, as the VLM node's jobs name them.

What is assumed of the service, which is that of the posemesh:

1. ``POST {api_url}/user/login`` with ``{email, password}`` answers ``{access_token}``.
2. ``POST {api_url}/service/domains-access-token`` with that token as a bearer answers a token for
   the discovery service, ``{access_token}``.
3. ``POST {dds_url}/api/v1/domains/{domain_id}/auth`` with that one answers ``{access_token,
   domain_server: {url}}``: the server with the domain's data, and a token for it.
4. ``GET {url}/api/v1/domains/{domain_id}/data``, with ``ids`` separated by commas if some are
   named, answers ``{data: [{id, name, data_type, size, created_at}]}``.
5. ``GET {url}/api/v1/domains/{domain_id}/data/{id}?raw=true`` answers the file.

Every request names this client in ``posemesh-client-id``. A 401 means that a token has expired: all
three steps are taken again, once. Entries whose ``data_type`` is that of no picture are left out,
unless they are named.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote
from weakref import WeakValueDictionary

import httpx

from raylens.core.config import PictureSourceConfig
from raylens.core.errors import InvalidRequest, PayloadTooLarge
from raylens.jobs.sources.base import (
    PictureGone,
    PictureSource,
    SourcePicture,
    SourceUnavailable,
    unknown_domain,
    unknown_picture,
)

PICTURE_TYPES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "heic", "image")
"""Beginnings of ``data_type`` of entries that are pictures."""
TIMEOUT_S = 30.0
RETRY_AFTER_S = 5.0
MAX_DOMAINS = 256
"""Domains whose tokens are kept."""


@dataclass(frozen=True)
class _Access:
    """The server of a domain's data, and a token for it."""

    url: str
    token: str


class DomainSource(PictureSource):
    """The service at ``config.api_url`` and ``config.dds_url``.

    Email and password come from the environment variables that the configuration names.
    """

    def __init__(
        self, config: PictureSourceConfig, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._config = config
        headers = {"posemesh-client-id": config.client_id}
        self._http = httpx.AsyncClient(timeout=TIMEOUT_S, headers=headers, transport=transport)
        self._access: dict[str, _Access] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """One for each domain that is being logged in to."""

    async def list_pictures(
        self, domain_id: str, ids: Sequence[str], limit: int
    ) -> list[SourcePicture]:
        if not domain_id:
            raise InvalidRequest("domain_id: missing; expected the domain's id", "domain_id")
        params = {"ids": ",".join(ids)} if ids else {}
        response = await self._get(domain_id, "", params)
        entries = _entries(response)
        if not ids:
            return [_picture(entry) for entry in entries if _is_picture(entry)]
        found = {entry["id"]: entry for entry in entries}
        for number, picture_id in enumerate(ids):
            if picture_id not in found:
                raise unknown_picture(number, picture_id)
        return [_picture(found[picture_id]) for picture_id in ids]

    async def read(self, domain_id: str, picture: SourcePicture, max_bytes: int) -> bytes:
        path = f"/{quote(picture.id, safe='')}"
        response = await self._get(domain_id, path, {"raw": "true"}, max_bytes)
        return response.content

    async def _get(
        self, domain_id: str, path: str, params: dict[str, str], max_bytes: int | None = None
    ) -> httpx.Response:
        """Request something of a domain's data. An expired token is renewed once."""
        expired: _Access | None = None
        for _ in range(2):
            access = await self._access_to(domain_id, expired)
            url = f"{access.url}/api/v1/domains/{quote(domain_id, safe='')}/data{path}"
            bearer = {"Authorization": f"Bearer {access.token}", "Accept": "*/*"}
            request = self._http.build_request("GET", url, params=params, headers=bearer)
            response = await self._send(request, max_bytes)
            if response.status_code != 401:
                break
            expired = access
        if response.status_code == 404:
            raise unknown_domain(domain_id) if not path else PictureGone
        return _succeeded(response)

    async def _access_to(self, domain_id: str, expired: _Access | None) -> _Access:
        """Return the access to a domain, anew if the known one has ``expired``."""
        lock = self._locks.setdefault(domain_id, asyncio.Lock())
        async with lock:
            known = self._access.get(domain_id)
            if known is not None and known is not expired:
                return known
            access = await self._log_in(domain_id)
            while len(self._access) >= MAX_DOMAINS:
                self._access.pop(next(iter(self._access)))
            self._access[domain_id] = access
            return access

    async def _log_in(self, domain_id: str) -> _Access:
        config = self._config
        credentials = {
            "email": os.environ.get(config.email_env, ""),
            "password": os.environ.get(config.password_env, ""),
        }
        user = await self._post(f"{config.api_url}/user/login", json=credentials)
        service = await self._post(f"{config.api_url}/service/domains-access-token", _token(user))
        url = f"{config.dds_url}/api/v1/domains/{quote(domain_id, safe='')}/auth"
        response = await self._send(self._build_post(url, _token(service)))
        if response.status_code in (400, 403, 404):
            raise unknown_domain(domain_id)
        domain = _json(_succeeded(response))
        try:
            return _Access(str(domain["domain_server"]["url"]).rstrip("/"), _token(domain))
        except (KeyError, TypeError):
            raise _unavailable("it named no server of the domain's data") from None

    async def _post(self, url: str, token: str | None = None, json: Any = None) -> dict[str, Any]:
        response = await self._send(self._build_post(url, token, json))
        return _json(_succeeded(response))

    def _build_post(self, url: str, token: str | None = None, json: Any = None) -> httpx.Request:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return self._http.build_request("POST", url, json=json, headers=headers)

    async def _send(self, request: httpx.Request, max_bytes: int | None = None) -> httpx.Response:
        """Return the answer with its whole body. Raises ``PayloadTooLarge`` over ``max_bytes``."""
        try:
            response = await self._http.send(request, stream=True)
            try:
                size = 0
                parts = []
                async for part in response.aiter_bytes():
                    size += len(part)
                    if max_bytes is not None and response.is_success and size > max_bytes:
                        message = (
                            f"query.ids: a picture of over {max_bytes} bytes, which is the limit"
                        )
                        raise PayloadTooLarge(message, "query.ids", max_bytes, size)
                    parts.append(part)
            finally:
                await response.aclose()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _unavailable(type(error).__name__) from error
        return httpx.Response(response.status_code, content=b"".join(parts))


def _entries(response: httpx.Response) -> list[dict[str, Any]]:
    entries = _json(response).get("data")
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and isinstance(entry.get("id"), str) for entry in entries
    ):
        raise _unavailable("its list of data has another form")
    return entries


def _is_picture(entry: dict[str, Any]) -> bool:
    return str(entry.get("data_type", "")).lower().lstrip(".").startswith(PICTURE_TYPES)


def _picture(entry: dict[str, Any]) -> SourcePicture:
    return SourcePicture(entry["id"], str(entry.get("name") or entry["id"]), _time(entry))


def _time(entry: dict[str, Any]) -> float | None:
    """Return an entry's time of creation in seconds since the epoch, if it has a readable one."""
    try:
        created_at = datetime.fromisoformat(str(entry.get("created_at")))
    except ValueError:
        return None
    return (created_at if created_at.tzinfo else created_at.replace(tzinfo=UTC)).timestamp()


def _token(answer: dict[str, Any]) -> str:
    token = answer.get("access_token")
    if not isinstance(token, str) or not token:
        raise _unavailable("it gave no access token")
    return token


def _json(response: httpx.Response) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise _unavailable("it answered no JSON object")
    return body


def _succeeded(response: httpx.Response) -> httpx.Response:
    if not response.is_success:
        raise _unavailable(f"it answered {response.status_code}")
    return response


def _unavailable(reason: str) -> SourceUnavailable:
    message = f"the domain data service can't be used: {reason}"
    return SourceUnavailable(message, None, None, None, RETRY_AFTER_S)
