"""An HTTP client for URLs that others name: it connects to the addresses that were checked, and
nowhere else."""

from __future__ import annotations

from types import TracebackType
from typing import Self

import httpx

from raylens.core.errors import InvalidRequest
from raylens.net.address import Address, AllowList, check_literal, resolve

MAX_URL = 2048


class GuardedClient:
    """Resolves a URL's host once, checks every address, and connects to one of those: a name that
    changes its mind between check and use (DNS rebinding) gains nothing. Redirects are not
    followed, and no proxy is asked.

    TLS still verifies the host's name (httpx's extension ``sni_hostname``).
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
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def post(
        self, url: str, content: bytes, headers: dict[str, str], field: str
    ) -> httpx.Response:
        """The answer, of which only status and headers are read. Raises ``InvalidRequest`` for a
        URL that may not be called, ``OSError`` where its host has no address, and httpx's
        errors."""
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
    """Raises ``InvalidRequest`` for what is not an absolute http or https URL without a user in it."""
    if len(url) > MAX_URL:
        raise InvalidRequest(
            f"{field}: {len(url)} characters; the limit is {MAX_URL}", field, MAX_URL, len(url)
        )
    try:
        parsed = httpx.URL(url)
        parsed.netloc.decode("ascii")
        host = parsed.host
    except (httpx.InvalidURL, UnicodeError) as error:
        raise InvalidRequest(f"{field}: not a URL ({error})", field) from None
    if parsed.scheme not in ("http", "https") or not host:
        raise InvalidRequest(f"{field}: an http:// or https:// URL is needed", field)
    if parsed.port is not None and not 0 < parsed.port < 65_536:
        raise InvalidRequest(
            f"{field}: there is no such port, {parsed.port}", field, 65_535, parsed.port
        )
    if parsed.userinfo:
        raise InvalidRequest(f"{field}: a URL with a user or a password in it is refused", field)
    return parsed


def check_url(url: str, allowed: AllowList, field: str) -> None:
    """What can be said of a URL without asking the network. Raises ``InvalidRequest``."""
    check_literal(parse_url(url, field).host, allowed, field)
