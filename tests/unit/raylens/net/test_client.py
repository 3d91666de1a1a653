from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import Any

import httpx
import pytest

from raylens.core.errors import InvalidRequest
from raylens.net.address import AddressRefused, AllowList
from raylens.net.client import (
    GuardedClient,
    check_destination,
    describe_failure,
    parse_url,
)
from raylens.net.lookup import Address, LookUp, look_up
from tests.unit.raylens.net.fake_dns import FakeDns
from tests.unit.raylens.net.servers import OK, Handler, listening, serving

ALLOW_LOOPBACK = AllowList.parse(["127.0.0.1"])


def make_client(
    allowed: AllowList = ALLOW_LOOPBACK, look_up: LookUp = look_up, timeout_s: float = 5
) -> GuardedClient:
    return GuardedClient(allowed, timeout_s, "raylens/test", look_up)


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


async def test_a_name_with_one_private_address_is_refused() -> None:
    dns = FakeDns("93.184.216.34", "127.0.0.1")
    async with make_client(AllowList(), dns.look_up) as client:
        with pytest.raises(AddressRefused) as caught:
            await client.post("http://two-faced.example/", b"", {}, "webhook_url")
    assert caught.value.message == (
        "webhook_url: two-faced.example leads to an address that is not public"
    )


async def test_dns_rebinding_after_the_check_has_no_effect() -> None:
    """The first lookup returns an allowed address, and every later one another address."""
    lookups: list[str] = []

    async def look_up(host: str) -> list[Address]:
        lookups.append(host)
        return [ip_address("127.0.0.1" if len(lookups) == 1 else "127.0.0.2")]

    async with listening(OK) as (port, heads), make_client(look_up=look_up) as client:
        url = f"http://rebinding.example:{port}/"
        response = await client.post(url, b"", {}, "webhook_url")
    assert response.status_code == 200
    assert len(heads) == 1
    assert lookups == ["rebinding.example"]


@pytest.mark.parametrize("host", ["faß.example", "FAẞ.example", "xn--fa-hia.example"])
async def test_a_name_is_looked_up_and_sent_in_ascii_by_idna_2008(host: str) -> None:
    dns = FakeDns("127.0.0.1")
    async with listening(OK) as (port, heads), make_client(look_up=dns.look_up) as client:
        await client.post(f"http://{host}:{port}/", b"", {}, "webhook_url")
    assert dns.names == ["xn--fa-hia.example"]
    assert f"Host: xn--fa-hia.example:{port}\r\n".encode() in heads[0]


async def test_tls_names_the_host_in_ascii_without_a_trailing_dot() -> None:
    hello = bytearray()

    async def read_hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello.extend(await reader.read(2**14))

    dns = FakeDns("127.0.0.1")
    async with serving(read_hello) as port, make_client(look_up=dns.look_up) as client:
        with pytest.raises(httpx.ConnectError):
            await client.post(f"https://faß.example.:{port}/", b"", {}, "webhook_url")
    name = b"xn--fa-hia.example"
    assert len(name).to_bytes(2, "big") + name in hello
    assert dns.names == ["xn--fa-hia.example."]


async def test_a_call_uses_no_thread_of_the_default_executor() -> None:
    class UnusedExecutor(ThreadPoolExecutor):
        def submit(self, *_: Any, **__: Any) -> Any:
            raise AssertionError("used")

    asyncio.get_running_loop().set_default_executor(UnusedExecutor())
    allowed = AllowList.parse(["localhost"])
    async with listening(OK) as (port, _), make_client(allowed) as client:
        url = f"http://localhost:{port}/"
        await check_destination(url, allowed, "webhook_url")
        assert (await client.post(url, b"", {}, "webhook_url")).status_code == 200


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
        ("http://example.com/a\nb", "not a URL"),
        ("http://exa mple.com\n/", r"'exa mple.com\\n': not a host name"),
        ("http://xn--/", "'xn--': not a host name"),
        ("http://a..b:80/", "'a..b': not a host name"),
        ("http://☃.example/", "'☃.example': not a host name"),
        ("http://%6c%6f.example/", "not a host name"),
        ("http://ü[b/", "not a host name"),
        ("http://[fe80::1%25lo]/", "not a host name"),
    ],
)
def test_an_invalid_url_is_refused_with_the_fields_name(url: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        parse_url(url, "webhook_url")
    assert caught.value.field == "webhook_url"


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://ｈｏｏｋｓ。example:8443/ä?ö#ü", b"hooks.example"),
        ("https://ΒΌΛΟΣ.example/", b"xn--nxasmq6b.example"),
        ("https://my_service:8000/", b"my_service"),
        ("https://example.com./", b"example.com."),
        ("http://①②⑦.0.0.1/", b"127.0.0.1"),
        ("http://[::1]/", b"::1"),
    ],
)
def test_the_host_of_a_parsed_url_is_ascii(url: str, host: bytes) -> None:
    assert parse_url(url, "webhook_url").raw_host == host


class TestTheCheckOfADestination:
    async def test_a_name_with_public_addresses_passes(self) -> None:
        dns = FakeDns("93.184.216.34", "2606:4700:4700::1111")
        url = "https://faß.example/hook"
        await check_destination(url, AllowList(), "webhook_url", look_up=dns.look_up)
        assert dns.names == ["xn--fa-hia.example"]

    async def test_a_name_that_leads_inside_is_refused_unless_allowed(self) -> None:
        dns = FakeDns("93.184.216.34", "10.0.0.1")
        url = "https://hooks.example/"
        with pytest.raises(AddressRefused) as caught:
            await check_destination(url, AllowList(), "webhook_url", look_up=dns.look_up)
        assert caught.value.message == (
            "webhook_url: hooks.example leads to an address that is not public"
        )
        for entry in ("10.0.0.0/8", "hooks.example"):
            allowed = AllowList.parse([entry])
            await check_destination(url, allowed, "webhook_url", look_up=dns.look_up)

    async def test_a_name_of_this_machine_is_refused(self) -> None:
        with pytest.raises(AddressRefused, match="localhost leads to"):
            await check_destination("http://localhost:9911/", AllowList(), "webhook_url")

    async def test_a_name_that_has_no_address_now_passes(self) -> None:
        url = "https://nothing.invalid/"
        await check_destination(url, AllowList(), "webhook_url")
        await check_destination(url, AllowList(), "webhook_url", look_up=FakeDns().look_up)

    async def test_a_name_that_is_not_found_in_time_passes(self) -> None:
        async def never(host: str) -> list[Address]:
            await asyncio.Event().wait()
            return []

        await check_destination("https://slow.example/", AllowList(), "webhook_url", 0.01, never)

    @pytest.mark.parametrize("url", ["ftp://a.example/", "http://a..b/", "http://10.0.0.1/"])
    async def test_an_invalid_url_is_refused_without_a_lookup(self, url: str) -> None:
        dns = FakeDns("93.184.216.34")
        with pytest.raises(InvalidRequest):
            await check_destination(url, AllowList(), "webhook_url", look_up=dns.look_up)
        assert dns.names == []


async def close_at_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(2**14)


async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(2**14)
    no_linger = b"\1\0\0\0" + bytes(4)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_linger)
    writer.transport.abort()


async def answer_in_another_protocol(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    await reader.read(2**14)
    writer.write(b"220 mail.example ESMTP\r\n\r\n")
    await writer.drain()


async def never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(2**14):
        pass


def make_certificate_error(verify_message: str) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = verify_message
    return error


def make_connect_error(cause: Exception) -> httpx.ConnectError:
    """Return an error as httpx raises it, two levels above its cause."""
    failed = OSError("All connection attempts failed")
    failed.__cause__ = cause
    error = httpx.ConnectError("All connection attempts failed")
    error.__cause__ = failed
    return error


class TestTheDescriptionOfAFailure:
    @pytest.mark.parametrize(
        ("handler", "scheme", "phrase"),
        [
            (close_at_once, "http", "the connection was closed before the answer"),
            (close_at_once, "https", "the connection was closed before the answer"),
            (reset, "http", "connection reset"),
            (reset, "https", "connection reset"),
            (answer_in_another_protocol, "http", "the answer was not valid HTTP"),
            (answer_in_another_protocol, "https", "TLS handshake failed"),
            (never_answer, "http", "no answer in time"),
            (never_answer, "https", "no answer in time"),
        ],
    )
    async def test_a_server_that_does_not_answer(
        self, handler: Handler, scheme: str, phrase: str
    ) -> None:
        timeout_s = 0.1 if handler is never_answer else 10
        async with serving(handler) as port, make_client(timeout_s=timeout_s) as client:
            with pytest.raises(httpx.HTTPError) as caught:
                await client.post(f"{scheme}://127.0.0.1:{port}/", b"{}", {}, "webhook_url")
        assert describe_failure(caught.value) == phrase

    async def test_no_server(self) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
            async with make_client() as client:
                with pytest.raises(httpx.ConnectError) as caught:
                    await client.post(f"http://127.0.0.1:{port}/", b"", {}, "webhook_url")
        assert describe_failure(caught.value) == "connection refused"

    async def test_no_such_host(self) -> None:
        async with make_client(look_up=FakeDns().look_up) as client:
            with pytest.raises(socket.gaierror) as caught:
                await client.post("http://nothing.example/", b"", {}, "webhook_url")
        assert describe_failure(caught.value) == "the host name was not found"

    @pytest.mark.parametrize(
        ("error", "phrase"),
        [
            (TimeoutError(), "no answer in time"),
            (
                make_connect_error(OSError(errno.ETIMEDOUT, "Connect call failed ('10.0.0.5', 1)")),
                "no answer in time",
            ),
            (
                make_connect_error(
                    OSError(errno.EHOSTUNREACH, "Connect call failed ('10.0.0.5', 443)")
                ),
                "no route to the host",
            ),
            (
                make_connect_error(OSError(errno.ENETUNREACH, "Network is unreachable")),
                "no route to the host",
            ),
            (
                make_connect_error(make_certificate_error("certificate has expired")),
                "the TLS certificate was not accepted: certificate has expired",
            ),
            (
                make_connect_error(
                    make_certificate_error(
                        "IP address mismatch, certificate is not valid for '10.0.0.5'."
                    )
                ),
                "the TLS certificate was not accepted: IP address mismatch",
            ),
            (socket.gaierror(socket.EAI_NONAME, "10.0.0.5"), "the host name was not found"),
            (socket.gaierror(socket.EAI_AGAIN, "x"), "the host name could not be looked up"),
            (httpx.ReadError(""), "the connection was closed before the answer"),
            (httpx.ConnectError("to 10.0.0.5 failed"), "ConnectError"),
            (OSError(errno.EMFILE, "10.0.0.5"), "OSError"),
            (ValueError("10.0.0.5"), "ValueError"),
        ],
    )
    def test_is_a_phrase_without_addresses(self, error: Exception, phrase: str) -> None:
        assert describe_failure(error) == phrase

    def test_an_error_during_another_is_described_by_that_one(self) -> None:
        error = httpx.ReadError("")
        error.__context__ = ConnectionResetError(errno.ECONNRESET, "10.0.0.5")
        assert describe_failure(error) == "connection reset"
