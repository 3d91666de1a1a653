"""An HTTP client for URLs from untrusted callers: it connects only to addresses that it checked."""

from __future__ import annotations

from types import TracebackType
from typing import Self

import httpx

from raylens.core.errors import InvalidRequest
from raylens.net.address import Address, AllowList, check_literal, resolve

MAX_URL_CHARS = 2048


class GuardedClient:
    """An HTTP client that can't be made to call private addresses.

    It resolves a URL's host once, checks every address, and connects to one of those. A host name
    that resolves differently after the check (DNS rebinding) therefore gains nothing. The client
    follows no redirects and uses no proxy.

    TLS still verifies the host name, by httpx's extension ``sni_hostname``.
    """

    def __init__(self, allowed: AllowList, timeout_s: float, user_agent: str) -> None:
        self._allowed = allowed
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self._http = httpx.AsyncClient(
            timeout=timeout_s,
            trust_env=False,
            follow_redirects=False,
            limits=limits,
            headers={"User-Agent": user_agent},
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def post(
        self, url: str, content: bytes, headers: dict[str, str], field: str
    ) -> httpx.Response:
        """Post to a URL. Return the response with its status and headers; the body is not read.

        Raises ``InvalidRequest`` if the URL is invalid or may not be called, ``OSError`` if its
        host has no address, and httpx's errors.
        """
        parsed = parse_url(url, field)
        port = parsed.port or (443 if parsed.scheme == "https" else 80)
        addresses = await resolve(parsed.host, port, self._allowed, field)
        for address in addresses[:-1]:
            try:
                return await self._post_to(address, parsed, content, headers)
            except httpx.ConnectError:
                continue
        return await self._post_to(addresses[-1], parsed, content, headers)

    async def _post_to(
        self, address: Address, url: httpx.URL, content: bytes, headers: dict[str, str]
    ) -> httpx.Response:
        request = self._http.build_request(
            "POST",
            url.copy_with(host=str(address)),
            content=content,
            headers={**headers, "Host": url.netloc.decode("ascii")},
            extensions={"sni_hostname": url.host},
        )
        response = await self._http.send(request, stream=True)
        await response.aclose()
        return response


def parse_url(url: str, field: str) -> httpx.URL:
    """Parse a URL.

    Raises ``InvalidRequest`` unless it is an absolute http or https URL without a user or password.
    """
    if len(url) > MAX_URL_CHARS:
        message = f"{field}: {len(url)} characters; the limit is {MAX_URL_CHARS}"
        raise InvalidRequest(message, field, MAX_URL_CHARS, len(url))
    try:
        parsed = httpx.URL(url)
        parsed.netloc.decode("ascii")
        host = parsed.host
    except (httpx.InvalidURL, UnicodeError) as error:
        raise InvalidRequest(f"{field}: not a URL ({error})", field) from None
    if parsed.scheme not in ("http", "https") or not host:
        raise InvalidRequest(f"{field}: expected an http:// or https:// URL", field)
    if parsed.port is not None and not 0 < parsed.port < 65_536:
        message = f"{field}: port {parsed.port}; expected 1 to 65535"
        raise InvalidRequest(message, field, 65_535, parsed.port)
    if parsed.userinfo:
        raise InvalidRequest(f"{field}: a user or password in the URL is not supported", field)
    return parsed


def check_url(url: str, allowed: AllowList, field: str) -> None:
    """Check a URL without network access. Raises ``InvalidRequest``."""
    check_literal(parse_url(url, field).host, allowed, field)
