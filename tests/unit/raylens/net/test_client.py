from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from raylens.core.errors import InvalidRequest
from raylens.net.address import AddressRefused, AllowList
from raylens.net.client import GuardedClient, check_url, parse_url

ALLOW_LOOPBACK = AllowList.parse(["127.0.0.1"])
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


@asynccontextmanager
async def listening(response: bytes) -> AsyncIterator[tuple[int, list[bytes]]]:
    """Run a server that gives the same response to every request.

    Yields its port and the heads of the requests.
    """
    heads: list[bytes] = []

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(response)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(respond, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], heads


def make_client(allowed: AllowList = ALLOW_LOOPBACK) -> GuardedClient:
    return GuardedClient(allowed, 5, "raylens/test")


async def test_a_request_goes_to_the_address_under_the_hosts_name() -> None:
    async with (
        listening(b"HTTP/1.1 204 No Content\r\nX-Y: z\r\n\r\n") as (port, heads),
        make_client(AllowList.parse(["localhost"])) as client,
    ):
        url = f"http://localhost:{port}/hook?a=b"
        response = await client.post(url, b"{}", {"X-A": "1"}, "webhook_url")
    assert (response.status_code, response.headers["x-y"]) == (204, "z")
    (head,) = heads
    assert head.startswith(b"POST /hook?a=b HTTP/1.1\r\n")
    assert f"Host: localhost:{port}".encode() in head
    assert b"User-Agent: raylens/test" in head


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(status: int) -> None:
    async with listening(OK) as (target_port, target_heads):
        redirect = (
            f"HTTP/1.1 {status} Moved\r\n"
            f"Location: http://127.0.0.1:{target_port}/\r\n"
            "Content-Length: 0\r\n\r\n"
        )
        async with listening(redirect.encode()) as (port, _), make_client() as client:
            response = await client.post(f"http://127.0.0.1:{port}/", b"", {}, "webhook_url")
    assert response.status_code == status
    assert target_heads == []


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "[::1]", "169.254.169.254", "10.0.0.1"),
        *("[::ffff:127.0.0.1]", "0.0.0.0"),
        *("2130706433", "0177.0.0.1", "0x7f.0.0.1", "127.1"),
    ],
)
async def test_nothing_is_sent_to_an_address_that_is_not_public(host: str) -> None:
    async with listening(OK) as (port, heads), make_client(AllowList()) as client:
        with pytest.raises(InvalidRequest):
            await client.post(f"http://{host}:{port}/", b"", {}, "webhook_url")
    assert heads == []


async def test_a_name_with_one_private_address_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entries = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80))
        for address in ("93.184.216.34", "127.0.0.1")
    ]

    async def getaddrinfo(*_: Any, **__: Any) -> Any:
        return entries

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    async with make_client(AllowList()) as client:
        with pytest.raises(AddressRefused, match=r"resolves to 127\.0\.0\.1"):
            await client.post("http://two-faced.example/", b"", {}, "webhook_url")


async def test_dns_rebinding_after_the_check_has_no_effect(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first lookup returns an allowed address, and every later one another address."""
    lookups: list[str] = []

    async def getaddrinfo(host: str, *_: Any, **__: Any) -> Any:
        lookups.append(host)
        address = "127.0.0.1" if len(lookups) == 1 else "127.0.0.2"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0))]

    async with listening(OK) as (port, heads), make_client() as client:
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
        url = f"http://rebinding.example:{port}/"
        response = await client.post(url, b"", {}, "webhook_url")
    assert response.status_code == 200
    assert len(heads) == 1
    assert lookups.count("rebinding.example") == 1


async def test_a_refused_connection_raises_httpx_own_error() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        async with make_client() as client:
            with pytest.raises(httpx.ConnectError):
                await client.post(f"http://127.0.0.1:{port}/", b"", {}, "webhook_url")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://example.com/", "http:// or https://"),
        ("example.com", "http:// or https://"),
        ("/hook", "http:// or https://"),
        ("http://", "http:// or https://"),
        ("http://user:secret@example.com/", "a user or password in the URL"),
        ("http://example.com:99999/", "port 99999; expected 1 to 65535"),
        ("http://example.com:0/", "port 0; expected 1 to 65535"),
        ("http://" + "a" * 2100, "the limit is 2048"),
        ("http://[::1", "not a URL"),
        ("http://xn--/", "not a URL"),
        ("http://exa mple.com\n/", "not a URL"),
    ],
)
def test_an_invalid_url_is_refused_with_the_fields_name(url: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        parse_url(url, "webhook_url")
    assert caught.value.field == "webhook_url"


def test_a_url_can_be_checked_without_network_access() -> None:
    check_url("https://hooks.example.com/a", AllowList(), "webhook_url")
    with pytest.raises(AddressRefused):
        check_url("http://2130706433/", AllowList(), "webhook_url")
