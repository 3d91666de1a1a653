from __future__ import annotations

import asyncio
import gzip
import time
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import Any

import pytest
from tenacity import wait_none

from raylens.core.config import FetchConfig
from raylens.core.errors import (
    DeadlineExceeded,
    FailureClass,
    InvalidRequest,
    PayloadTooLarge,
    UnsupportedMedia,
)
from raylens.net.address import AddressRefused
from raylens.net.fetcher import ATTEMPTS, Fetcher, FetchFailed, FetchInterrupted
from raylens.net.lookup import Address, LookUp
from tests.unit.raylens.net.fake_dns import FakeDns
from tests.unit.raylens.net.servers import listening, serving
from tests.unit.raylens.net.test_address import NOT_PUBLIC_IPV4, NOT_PUBLIC_IPV6

LIMIT = 100_000
LOOPBACK = FakeDns("127.0.0.1")


def make_fetcher(
    allow: tuple[str, ...] = ("127.0.0.1",),
    look_up: LookUp = LOOPBACK.look_up,
    clock: Callable[[], float] = time.time,
    **settings: Any,
) -> Fetcher:
    config = FetchConfig(allow=allow, **settings)
    return Fetcher(config, look_up, wait=wait_none(), clock=clock)


async def fetch(fetcher: Fetcher, url: str, deadline: float | None = None) -> bytes:
    deadline = time.time() + 30 if deadline is None else deadline
    try:
        return await fetcher.fetch(url, "image_url", LIMIT, deadline)
    finally:
        await fetcher.close()


def answer(
    body: bytes = b"picture", status: str = "200 OK", length: int | None = None, **headers: str
) -> bytes:
    head = {"Content-Length": str(len(body) if length is None else length)}
    head |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + body


@asynccontextmanager
async def answering(*answers: bytes) -> AsyncIterator[tuple[int, list[bytes]]]:
    """Run a server with an answer for each request in turn; the last one repeats."""
    left = list(answers)
    heads: list[bytes] = []

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(left.pop(0) if len(left) > 1 else left[0])
        await writer.drain()

    async with serving(respond) as port:
        yield port, heads


async def test_a_file_is_downloaded_under_its_hosts_name() -> None:
    async with listening(answer(Content_Type="image/png")) as (port, heads):
        url = f"http://pictures.example:{port}/a%20b.png?c=d#e"
        assert await fetch(make_fetcher(), url) == b"picture"
    (head,) = heads
    assert head.startswith(b"GET /a%20b.png?c=d HTTP/1.1\r\n")
    assert f"Host: pictures.example:{port}\r\n".encode() in head
    assert b"Accept-Encoding: identity\r\n" in head


async def test_nothing_is_downloaded_if_downloads_are_off() -> None:
    with pytest.raises(InvalidRequest, match="image_url: this server downloads nothing"):
        await fetch(make_fetcher(mode="off"), "http://127.0.0.1/")


@pytest.mark.parametrize("address", [*NOT_PUBLIC_IPV4, *NOT_PUBLIC_IPV6])
async def test_a_name_of_an_address_that_is_not_public_is_refused(address: str) -> None:
    dns = FakeDns(address)
    with pytest.raises(AddressRefused) as caught:
        await fetch(make_fetcher((), dns.look_up), "http://two-faced.example/cat.jpg")
    assert caught.value.message == (
        "image_url: two-faced.example leads to an address that is not public"
    )


@pytest.mark.parametrize(
    ("allow", "host", "message"),
    [
        (("pictures.example",), "pictures.example", None),
        (("pictures.example",), "other.example", "not on the list"),
        (("*.example",), "pictures.example", None),
        (("*.example",), "a.b.example", None),
        (("*.pictures.example",), "pictures.example", "not on the list"),
        (("pictures.example",), "badpictures.example", "not on the list"),
        (("127.0.0.0/8",), "pictures.example", None),
        (("127.0.0.0/8",), "127.0.0.1", None),
        ((), "127.0.0.1", "not on the list"),
        ((), "1.1.1.1", "not on the list"),
    ],
)
async def test_a_list_excludes_everything_else(
    allow: tuple[str, ...], host: str, message: str | None
) -> None:
    async with listening(answer()) as (port, _):
        fetching = fetch(make_fetcher(allow, mode="list"), f"http://{host}:{port}/")
        if message is None:
            assert await fetching == b"picture"
        else:
            with pytest.raises(AddressRefused, match=message):
                await fetching


@pytest.mark.parametrize(
    "url", ["ftp://example.com/", "http://user:password@example.com/", "http://a b/", "http://"]
)
async def test_an_invalid_url_names_the_field(url: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^image_url: "):
        await fetch(make_fetcher(), url)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_followed(status: int) -> None:
    redirect = answer(b"", f"{status} Moved", Location="/other.png")
    async with answering(redirect, answer(b"there")) as (port, heads):
        assert await fetch(make_fetcher(), f"http://pictures.example:{port}/a.png") == b"there"
    assert [head.split()[1] for head in heads] == [b"/a.png", b"/other.png"]


async def test_the_host_of_a_redirect_is_resolved_and_checked() -> None:
    addresses = {"pictures.example": "127.0.0.1", "inside.example": "127.0.0.2"}

    async def look_up(host: str) -> list[Address]:
        return [ip_address(addresses[host])]

    for target in ("http://inside.example/", "http://127.0.0.2/", "http://0x7f000002/"):
        async with listening(answer(b"", "302 Found", Location=target)) as (port, _):
            with pytest.raises(AddressRefused) as caught:
                await fetch(make_fetcher(look_up=look_up), f"http://pictures.example:{port}/")
            assert "127.0.0.2" not in caught.value.message.replace(target[7:-1], "")


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "data:image/png,a", "gopher://a/", "mailto:a@b"]
)
async def test_a_redirect_leads_to_http_only(target: str) -> None:
    async with listening(answer(b"", "302 Found", Location=target)) as (port, _):
        with pytest.raises(FetchFailed, match=r"pictures\.example: redirects to what is no http"):
            await fetch(make_fetcher(), f"http://pictures.example:{port}/")


async def test_redirects_in_a_circle_end() -> None:
    async with listening(answer(b"", "302 Found", Location="/")) as (port, heads):
        with pytest.raises(FetchFailed, match="over 3 redirects"):
            await fetch(make_fetcher(max_redirects=3), f"http://pictures.example:{port}/")
    assert len(heads) == 4


async def test_rebinding_between_check_and_connection_has_no_effect() -> None:
    lookups: list[str] = []

    async def look_up(host: str) -> list[Address]:
        lookups.append(host)
        return [ip_address("127.0.0.1" if len(lookups) == 1 else "127.0.0.2")]

    async with listening(answer()) as (port, _):
        url = f"http://rebinding.example:{port}/"
        assert await fetch(make_fetcher(look_up=look_up), url) == b"picture"
    assert lookups == ["rebinding.example"]


async def test_a_body_over_the_limit_is_refused_by_its_length() -> None:
    async with listening(answer(b"", length=10 * 2**30)) as (port, _):
        with pytest.raises(PayloadTooLarge, match=f"over {LIMIT} bytes") as caught:
            await fetch(make_fetcher(), f"http://pictures.example:{port}/")
    assert (caught.value.field, caught.value.limit) == ("image_url", LIMIT)


async def test_an_endless_body_is_cut_off_at_the_limit() -> None:
    sent = 0

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"8000\r\n" + bytes(0x8000) + b"\r\n")
            sent += 0x8000
            await writer.drain()

    async with serving(respond) as port:
        with pytest.raises(PayloadTooLarge):
            await fetch(make_fetcher(), f"http://pictures.example:{port}/")
    assert sent < 100 * LIMIT  # what the kernel's buffers take


async def test_a_body_shorter_than_its_length_is_tried_again() -> None:
    async with answering(answer(b"pic", length=7), answer()) as (port, heads):
        assert await fetch(make_fetcher(), f"http://pictures.example:{port}/") == b"picture"
    assert len(heads) == 2


async def test_a_slow_body_ends_at_the_timeout_and_at_the_deadline() -> None:
    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        # A reset connection has an exception and no end.
        while not reader.at_eof() and reader.exception() is None:
            writer.write(b"a")
            await asyncio.sleep(0.01)

    async with serving(respond) as port:
        url = f"http://pictures.example:{port}/"
        with pytest.raises(FetchInterrupted, match=r"no complete answer in 0\.1 seconds"):
            await fetch(make_fetcher(timeout_s=0.1), url)
        with pytest.raises(DeadlineExceeded, match="before image_url was downloaded"):
            await fetch(make_fetcher(), url, time.time() + 0.1)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "x-gzip"])
async def test_a_compressed_body_is_unpacked_within_the_limit(encoding: str) -> None:
    pack = zlib.compress if encoding == "deflate" else gzip.compress
    small = answer(pack(b"picture"), Content_Encoding=encoding)
    bomb = answer(pack(bytes(1000 * LIMIT)), Content_Encoding=encoding)
    cut = answer(pack(b"picture")[:-3], Content_Encoding=encoding)
    async with listening(small) as (port, _):
        assert await fetch(make_fetcher(), f"http://pictures.example:{port}/") == b"picture"
    async with listening(bomb) as (port, _):
        with pytest.raises(PayloadTooLarge):
            await fetch(make_fetcher(), f"http://pictures.example:{port}/")
    async with listening(cut) as (port, _):
        with pytest.raises(FetchFailed, match="cut off"):
            await fetch(make_fetcher(), f"http://pictures.example:{port}/")


async def test_other_encodings_and_web_pages_are_refused() -> None:
    async with listening(answer(Content_Encoding="zstd")) as (port, _):
        with pytest.raises(UnsupportedMedia, match="Content-Encoding zstd"):
            await fetch(make_fetcher(), f"http://pictures.example:{port}/")
    async with listening(answer(Content_Type="text/html; charset=utf-8")) as (port, _):
        with pytest.raises(UnsupportedMedia, match="sent text/html; charset=utf-8, which is no"):
            await fetch(make_fetcher(), f"http://pictures.example:{port}/")


@pytest.mark.parametrize("status", ["404 Not Found", "403 Forbidden", "410 Gone", "204 No Content"])
async def test_an_answer_that_will_not_change_is_not_asked_for_again(status: str) -> None:
    async with listening(answer(b"", status)) as (port, heads):
        with pytest.raises(FetchFailed, match=f"pictures.example: answered {status}") as caught:
            await fetch(make_fetcher(), f"http://pictures.example:{port}/")
    assert len(heads) == 1
    assert caught.value.failure_class is FailureClass.PERMANENT


@pytest.mark.parametrize("status", ["503 Service Unavailable", "429 Too Many Requests"])
async def test_a_transient_failure_is_tried_again(status: str) -> None:
    failure = answer(b"", status, Retry_After="0")
    async with answering(failure, b"", answer()) as (port, heads):
        assert await fetch(make_fetcher(), f"http://pictures.example:{port}/") == b"picture"
    assert len(heads) == ATTEMPTS
    async with listening(failure) as (port, heads):
        with pytest.raises(FetchInterrupted, match=f"answered {status}"):
            await fetch(make_fetcher(), f"http://pictures.example:{port}/")
    assert len(heads) == ATTEMPTS


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_a_fresh_file_is_not_asked_for_and_a_stale_one_by_its_validators() -> None:
    clock = Clock()
    first = answer(Cache_Control="public, max-age=60", ETag='"1"', Last_Modified="yesterday")
    unchanged = b'HTTP/1.1 304 Not Modified\r\nETag: "1"\r\n\r\n'
    changed = answer(b"changed", ETag='"2"', Cache_Control="no-store")
    async with answering(first, unchanged, changed, answer()) as (port, heads):
        fetcher = make_fetcher(clock=clock)
        url = f"http://pictures.example:{port}/"

        async def get() -> bytes:
            return await fetcher.fetch(url, "image_url", LIMIT, clock.now + 30)

        assert [await get(), await get()] == [b"picture"] * 2
        assert len(heads) == 1
        clock.now += 61
        assert await get() == b"picture"
        assert b'If-None-Match: "1"\r\n' in heads[1]
        assert b"If-Modified-Since: yesterday\r\n" in heads[1]
        assert await get() == b"changed"
        assert await get() == b"picture"
        assert b"If-None-Match" not in heads[3]
        await fetcher.close()


async def test_no_cookie_is_kept() -> None:
    """The client's URLs name addresses, and hosts share these."""
    response = answer(Set_Cookie="sid=secret", Cache_Control="no-store")
    async with listening(response) as (port, heads):
        fetcher = make_fetcher()
        for host in ("pictures.example", "pictures.example"):
            await fetcher.fetch(f"http://{host}:{port}/", "image_url", LIMIT, time.time() + 30)
        await fetcher.close()
    assert len(heads) == 2
    assert not any(b"cookie" in head.lower() for head in heads)


async def test_what_servers_say_of_their_files_counts_as_memory() -> None:
    responses = [
        answer(b"", ETag='"1"'),
        answer(b"small", ETag=f'"{"x" * 2000}"'),
        answer(b"small", ETag='"1"', Cache_Control="max-age=9"),
    ]
    async with answering(*responses) as (port, _):
        fetcher = make_fetcher(cache=10_000)
        for number in range(3):
            url = f"http://pictures.example:{port}/{number}"
            await fetcher.fetch(url, "image_url", LIMIT, time.time() + 30)
        await fetcher.close()
    assert 1000 < fetcher._cache.bytes < 2000


async def test_a_stale_file_that_was_larger_is_asked_for_again() -> None:
    responses = [answer(b"larger", ETag='"1"'), answer(b"small", ETag='"2"')]
    async with answering(*responses) as (port, _):
        fetcher = make_fetcher()
        url = f"http://pictures.example:{port}/"
        assert await fetcher.fetch(url, "video", LIMIT, time.time() + 30) == b"larger"
        assert await fetcher.fetch(url, "image_url", 5, time.time() + 30) == b"small"
        await fetcher.close()


async def test_waiting_for_other_downloads_is_not_the_hosts_slowness() -> None:
    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(0.15)
        writer.write(answer())
        await writer.drain()

    async with serving(respond) as port:
        fetcher = make_fetcher(max_at_once=1, timeout_s=0.4)
        url = f"http://pictures.example:{port}/"
        await asyncio.gather(
            *(fetcher.fetch(url, "image_url", LIMIT, time.time() + 30) for _ in range(4))
        )
        await fetcher.close()


async def test_a_host_that_does_not_answer_holds_up_no_other() -> None:
    is_over = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await is_over.wait()
        writer.write(answer())
        await writer.drain()

    async with serving(hang) as slow_port, answering(answer()) as (port, _):
        fetcher = make_fetcher(max_at_once=4, max_per_host=3)
        slow = [
            asyncio.create_task(
                fetcher.fetch(f"http://slow.example:{slow_port}/", "video", LIMIT, time.time() + 30)
            )
            for _ in range(8)
        ]
        url = f"http://pictures.example:{port}/"
        assert await fetcher.fetch(url, "image_url", LIMIT, time.time() + 30) == b"picture"
        is_over.set()
        assert await asyncio.gather(*slow) == [b"picture"] * 8
        await fetcher.close()


@pytest.mark.parametrize("limits", [{"max_at_once": 2}, {"max_per_host": 2}])
async def test_downloads_beyond_the_limit_wait(limits: dict[str, Any]) -> None:
    running = 0
    peak = 0

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal running, peak
        await reader.readuntil(b"\r\n\r\n")
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0.01)
        running -= 1
        writer.write(answer())
        await writer.drain()

    async with serving(respond) as port:
        fetcher = make_fetcher(**limits)
        url = f"http://pictures.example:{port}/"
        await asyncio.gather(
            *(fetcher.fetch(url, "image_url", LIMIT, time.time() + 30) for _ in range(6))
        )
        await fetcher.close()
    assert peak == 2
