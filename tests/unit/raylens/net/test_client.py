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

HERE = AllowList.parse(["127.0.0.1"])


@asynccontextmanager
async def listening(answer: bytes) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server that answers anything so; its port, and what it was sent."""
    heard: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        heard.append(head)
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], heard


def client(allowed: AllowList = HERE) -> GuardedClient:
    return GuardedClient(allowed, 5, "raylens/test")


async def test_it_posts_to_the_address_under_the_hosts_own_name() -> None:
    async with (
        listening(b"HTTP/1.1 204 No Content\r\nX-Y: z\r\n\r\n") as (port, heard),
        client(AllowList.parse(["localhost"])) as http,
    ):
        answer = await http.post(
            f"http://localhost:{port}/hook?a=b", b"{}", {"X-A": "1"}, "webhook_url"
        )
    assert (answer.status_code, answer.headers["x-y"]) == (204, "z")
    (head,) = heard
    assert head.startswith(b"POST /hook?a=b HTTP/1.1\r\n")
    assert f"Host: localhost:{port}".encode() in head
    assert b"User-Agent: raylens/test" in head


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(code: int) -> None:
    async with listening(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as (inner, reached):
        head = f"HTTP/1.1 {code} Moved\r\nLocation: http://127.0.0.1:{inner}/\r\nContent-Length: 0\r\n\r\n"
        async with listening(head.encode()) as (port, _), client() as http:
            answer = await http.post(f"http://127.0.0.1:{port}/", b"", {}, "webhook_url")
    assert answer.status_code == code
    assert reached == []


@pytest.mark.parametrize(
    "host",
    [
        *(
            "127.0.0.1",
            "localhost",
            "[::1]",
            "169.254.169.254",
            "10.0.0.1",
            "[::ffff:127.0.0.1]",
            "0.0.0.0",
        ),
        *("2130706433", "0177.0.0.1", "0x7f.0.0.1", "127.1"),
    ],
)
async def test_nothing_is_sent_where_nobody_may_send_us(host: str) -> None:
    async with listening(b"HTTP/1.1 200 OK\r\n\r\n") as (port, heard), client(AllowList()) as http:
        with pytest.raises(InvalidRequest):
            await http.post(f"http://{host}:{port}/", b"", {}, "webhook_url")
    assert heard == []


async def test_a_name_with_one_private_address_is_refused_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entries = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 80))
        for host in ("93.184.216.34", "127.0.0.1")
    ]

    async def answers(*_: Any, **__: Any) -> Any:
        return entries

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", answers)
    async with client(AllowList()) as http:
        with pytest.raises(AddressRefused, match=r"leads to 127\.0\.0\.1"):
            await http.post("http://two-faced.example/", b"", {}, "webhook_url")


async def test_a_name_that_changes_its_mind_after_the_check_gains_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """DNS rebinding: the first answer may be called, and every later one leads elsewhere."""
    asked: list[str] = []

    async def answers(host: str, *_: Any, **__: Any) -> Any:
        asked.append(host)
        address = "127.0.0.1" if len(asked) == 1 else "127.0.0.2"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0))]

    async with (
        listening(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as (port, heard),
        client() as http,
    ):
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", answers)
        answer = await http.post(f"http://rebinding.example:{port}/", b"", {}, "webhook_url")
    assert answer.status_code == 200
    assert len(heard) == 1
    assert asked.count("rebinding.example") == 1


async def test_nobody_listening_is_httpx_own_error() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        async with client() as http:
            with pytest.raises(httpx.ConnectError):
                await http.post(f"http://127.0.0.1:{port}/", b"", {}, "webhook_url")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ftp://example.com/", "http:// or https://"),
        ("example.com", "http:// or https://"),
        ("/hook", "http:// or https://"),
        ("http://", "http:// or https://"),
        ("http://user:secret@example.com/", "a user or a password"),
        ("http://example.com:99999/", "no such port"),
        ("http://example.com:0/", "no such port"),
        ("http://" + "a" * 2100, "the limit is 2048"),
        ("http://[::1", "not a URL"),
        ("http://xn--/", "not a URL"),
        ("http://exa mple.com\n/", "not a URL"),
    ],
)
def test_what_is_no_url_is_refused_and_named(url: str, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why) as caught:
        parse_url(url, "webhook_url")
    assert caught.value.field == "webhook_url"


def test_a_url_is_checked_as_far_as_it_can_be_without_the_network() -> None:
    check_url("https://hooks.example.com/a", AllowList(), "webhook_url")
    with pytest.raises(AddressRefused):
        check_url("http://2130706433/", AllowList(), "webhook_url")
