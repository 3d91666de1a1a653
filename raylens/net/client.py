"""An HTTP client for URLs from untrusted callers: it connects only to addresses that it checked."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import re
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from types import TracebackType
from typing import Self

import httpx

from raylens.core.errors import InvalidRequest
from raylens.net.address import MAX_HOST_CHARS, AllowList, resolve
from raylens.net.host_name import to_ascii
from raylens.net.lookup import LookUp, look_up

MAX_URL_CHARS = 2048
LOOKUP_TIMEOUT_S = 2.0
"""Longest lookup when a URL is submitted, in seconds."""
CONNECT_TIMEOUT_S = 5.0
"""Longest wait for one of a host's addresses to accept a connection, in seconds."""
_HOST_NAME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://(?:[^/?#]*@)?)([^/?#@:\[\]]+)")
"""What precedes a URL's host name, and the name."""

_NO_ROUTE = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH})
_LOOKUP_FAILED = frozenset({socket.EAI_AGAIN, socket.EAI_FAIL})
_CLOSED = "the connection was closed before the answer"
_PHRASES: tuple[tuple[type[Exception], str], ...] = (
    (httpx.TimeoutException, "no answer in time"),
    (TimeoutError, "no answer in time"),
    (ConnectionRefusedError, "connection refused"),
    (ConnectionError, "connection reset"),
    (ssl.SSLEOFError, _CLOSED),
    (ssl.SSLZeroReturnError, _CLOSED),  # the same in older versions of Python
    (ssl.SSLError, "TLS handshake failed"),
)
"""Phrases for kinds of errors, the narrower kind first."""


class GuardedClient:
    """An HTTP client that can't be made to call private addresses.

    It resolves a URL's host once, checks every address, and connects to one of those. A host name
    that resolves differently after the check (DNS rebinding) therefore gains nothing. The client
    follows no redirects and uses no proxy.

    TLS still verifies the host name, by httpx's extension ``sni_hostname``. ``look_up`` returns the
    addresses of a host name.
    """

    def __init__(
        self, allowed: AllowList, timeout_s: float, user_agent: str, look_up: LookUp = look_up
    ) -> None:
        self._allowed = allowed
        self._look_up = look_up
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_TIMEOUT_S)),
            trust_env=False,
            follow_redirects=False,
            # URLs name addresses, which hosts share: a cookie could go to another host.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
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
        async with self.request("POST", parse_url(url, field), headers, field, content) as response:
            return response

    @asynccontextmanager
    async def request(
        self,
        method: str,
        url: httpx.URL,
        headers: dict[str, str],
        field: str,
        content: bytes | None = None,
    ) -> AsyncIterator[httpx.Response]:
        """Send a request to a URL from :func:`parse_url`. The response's body can be streamed.

        Raises ``AddressRefused`` if the URL may not be called, ``OSError`` if its host has no
        address, and httpx's errors.
        """
        response = await self._send(method, url, headers, field, content)
        try:
            yield response
        finally:
            await response.aclose()

    async def _send(
        self,
        method: str,
        url: httpx.URL,
        headers: dict[str, str],
        field: str,
        content: bytes | None,
    ) -> httpx.Response:
        """Send a request to the first of the host's addresses that accepts a connection."""
        addresses = await resolve(_host(url), self._allowed, field, self._look_up)
        failure: httpx.ConnectError | httpx.ConnectTimeout | None = None
        for address in addresses:
            request = self._http.build_request(
                method,
                url.copy_with(host=str(address)),
                content=content,
                headers={**headers, "Host": url.netloc.decode("ascii")},
                extensions={"sni_hostname": _host(url).removesuffix(".")},
            )
            try:
                return await self._http.send(request, stream=True)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failure = error
        raise failure or socket.gaierror(socket.EAI_NONAME, "no address")


def parse_url(url: str, field: str) -> httpx.URL:
    """Parse a URL. The ``raw_host`` of the result is the name from :func:`to_ascii`, or an address.

    Raises ``InvalidRequest`` unless it is an absolute http or https URL without a user or password.
    """
    if len(url) > MAX_URL_CHARS:
        message = f"{field}: {len(url)} characters; the limit is {MAX_URL_CHARS}"
        raise InvalidRequest(message, field, MAX_URL_CHARS, len(url))
    try:
        parsed = httpx.URL(_with_ascii_name(url, field))
        host = _host(parsed)
    except (httpx.InvalidURL, UnicodeError) as error:
        raise InvalidRequest(f"{field}: not a URL ({error})", field) from None
    if parsed.scheme not in ("http", "https") or not host:
        raise InvalidRequest(f"{field}: expected an http:// or https:// URL", field)
    if "%" in host:  # the zone of an IPv6 address, or an escaped character
        raise _not_a_host_name(host, field)
    if parsed.port is not None and not 0 < parsed.port < 65_536:
        message = f"{field}: port {parsed.port}; expected 1 to 65535"
        raise InvalidRequest(message, field, 65_535, parsed.port)
    if parsed.userinfo:
        raise InvalidRequest(f"{field}: a user or password in the URL is not supported", field)
    return parsed


async def check_destination(
    url: str,
    allowed: AllowList,
    field: str,
    timeout_s: float = LOOKUP_TIMEOUT_S,
    look_up: LookUp = look_up,
) -> None:
    """Check a URL that is called later, and the addresses that its host has now.

    A host whose addresses can't be found within ``timeout_s`` passes, because DNS may be down for a
    moment. The call checks them again.

    Raises ``InvalidRequest`` if the URL is invalid, and ``AddressRefused`` if it may not be called.
    """
    host = _host(parse_url(url, field))
    with contextlib.suppress(OSError):
        async with asyncio.timeout(timeout_s):
            await resolve(host, allowed, field, look_up)


def describe_failure(error: Exception) -> str:
    """Return why a call got no answer, as a phrase without addresses.

    The phrase follows from the first known error among ``error`` and its causes. If none is known,
    it is the name of the error's class.
    """
    for cause in _causes(error):
        if phrase := _describe(cause):
            return phrase
    if isinstance(error, httpx.ReadError | httpx.WriteError):
        return _CLOSED
    return type(error).__name__


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, its cause, the cause's cause, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _describe(error: BaseException) -> str | None:
    """Return the phrase for an error by itself, and None if there is none."""
    if isinstance(error, socket.gaierror):
        failed = error.errno in _LOOKUP_FAILED
        return f"the host name {'could not be looked up' if failed else 'was not found'}"
    if isinstance(error, OSError) and error.errno in _NO_ROUTE:
        return "no route to the host"
    if isinstance(error, ssl.SSLCertVerificationError):
        # OpenSSL's reason may go on with the name that the certificate is not valid for.
        reason = error.verify_message.partition(",")[0]
        return f"the TLS certificate was not accepted: {reason}"
    if isinstance(error, httpx.RemoteProtocolError):
        is_closed = "disconnected" in str(error)
        return _CLOSED if is_closed else "the answer was not valid HTTP"
    return next((phrase for kind, phrase in _PHRASES if isinstance(error, kind)), None)


def _with_ascii_name(url: str, field: str) -> str:
    """Return a URL with its host name in ASCII. Raises ``InvalidRequest``.

    httpx would encode the name too, but without the mapping of UTS 46.
    """
    match = _HOST_NAME.match(url)
    if match is None:
        return url
    before, host = match.groups()
    try:
        return before + to_ascii(host) + url[match.end() :]
    except ValueError:
        raise _not_a_host_name(host, field) from None


def _not_a_host_name(host: str, field: str) -> InvalidRequest:
    return InvalidRequest(f"{field}: {host[:MAX_HOST_CHARS]!r}: not a host name", field)


def _host(url: httpx.URL) -> str:
    """Return the host of a parsed URL in ASCII."""
    return url.raw_host.decode("ascii")
