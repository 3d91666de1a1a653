"""What strangers can reach of a server on this machine, and what they can hold."""

from __future__ import annotations

import asyncio
import json
import socket
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from testing.pictures import encode_picture, gradient
from testing.slow_clients import slow_clients
from tests.serve.conftest import server_processes

CAPTION = "/v1/caption"


def listeners() -> list[tuple[str, int]]:
    """Return the addresses and ports on which the server listens."""
    ours = set(server_processes())
    return [
        (connection.laddr.ip, connection.laddr.port)
        for connection in psutil.net_connections("tcp")
        if connection.pid in ours and connection.laddr and connection.status == psutil.CONN_LISTEN
    ]


def is_loopback(address: str) -> bool:
    ip = ip_address(address)
    return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback


def test_nothing_listens_off_loopback(server: str) -> None:
    addresses = listeners()
    assert len(addresses) > 10
    assert urlsplit(server).port in [port for _, port in addresses]
    assert [entry for entry in addresses if not is_loopback(entry[0])] == []


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"X-Request-ID: \xff\r\n", 400),
        (b"X-Session-ID: \xff\r\n", 200),
        (b"X: " + b"x" * 20 * 2**20 + b"\r\n", 431),
        (b"Host: evil.example\r\n", 421),
    ],
)
def test_strange_heads_are_answered_as_json(server: str, head: bytes, status: int) -> None:
    address = urlsplit(server)
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        host = b"" if head.startswith(b"Host") else b"Host: localhost\r\n"
        connection.sendall(b"GET /v1/models HTTP/1.1\r\n" + host + head + b"\r\n")
        reader = connection.makefile("rb")
        assert int(reader.readline().split()[1]) == status
        while (line := reader.readline().lower()) != b"\r\n":
            if line.startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        assert json.loads(reader.read(length))


async def test_slow_and_idle_connections_shut_out_nobody(server: str) -> None:
    picture = encode_picture(gradient(64, 64))
    async with slow_clients(server), httpx.AsyncClient(base_url=server, timeout=60) as client:
        for _ in range(10):
            response = await client.post(CAPTION, files={"file": picture})
            assert response.status_code == 200, response.text
            await asyncio.sleep(0.3)


def test_other_users_can_not_read_the_token_and_the_logs(server: str) -> None:
    token = Path("~/.ray/auth_token").expanduser()
    session = Path("/tmp/ray/session_latest").resolve()
    assert {path.stat().st_mode & 0o077 for path in (token, session)} == {0}
