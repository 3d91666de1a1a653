from __future__ import annotations

from ipaddress import ip_address

import pytest

from raylens.net.address import AddressRefused, AllowList, check_literal, is_public, resolve
from tests.unit.raylens.net.fake_dns import FakeDns

ALLOW_NONE = AllowList()

NOT_PUBLIC_IPV4 = [
    *("127.0.0.1", "127.8.8.8", "0.0.0.0"),
    *("10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.9.9", "192.168.1.1"),
    *("169.254.169.254", "169.254.0.1", "100.64.0.1", "100.100.100.200"),
    *("192.0.0.1", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "192.88.99.1"),
    *("224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "168.63.129.16"),
]
NOT_PUBLIC_IPV6 = [
    *("::", "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254"),
    *("::127.0.0.1", "fe80::1", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1"),
    *("2001:db8::1", "2002:7f00:1::", "64:ff9b::7f00:1", "64:ff9b:1::a00:1", "2001:0:7f00:1::"),
    *("100::1", "::ffff:0:127.0.0.1", "100:0:0:1::1", "3fff::1", "5f00::1"),
]


@pytest.mark.parametrize("address", [*NOT_PUBLIC_IPV4, *NOT_PUBLIC_IPV6])
def test_special_and_private_addresses_are_not_public(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "::ffff:1.1.1.1"]
)
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "0.0.0.0", "10.1.2.3", "169.254.169.254"),
        *("2130706433", "0x7f000001", "0177.0.0.1", "017700000001", "127.1", "0x7f.1"),
        *("0", "0xa9fea9fe", "10.65535"),
        *("127.0.0.1.", "0x7f.1."),
        *("::1", "::ffff:127.0.0.1", "::ffff:7f00:1", "fe80::1%1", "fe80::1%lo"),
    ],
)
def test_an_address_that_is_not_public_is_refused_in_any_notation(host: str) -> None:
    with pytest.raises(AddressRefused) as caught:
        check_literal(host, ALLOW_NONE, "webhook_url")
    assert caught.value.message == f"webhook_url: {host} is not a public address"
    assert caught.value.field == "webhook_url"


@pytest.mark.parametrize(
    "host", ["example.com", "localhost", "1.1.1.1", "x" * 300, "a..b", "ⅷ.example"]
)
def test_names_pass_unresolved_and_public_addresses_pass(host: str) -> None:
    check_literal(host, ALLOW_NONE, "webhook_url")


@pytest.mark.parametrize(
    "addresses",
    [["10.0.0.1"], ["::1"], ["93.184.216.34", "10.0.0.1"], ["10.0.0.1", "93.184.216.34"]],
)
async def test_a_name_with_an_address_that_is_not_public_is_refused(addresses: list[str]) -> None:
    dns = FakeDns(*addresses)
    with pytest.raises(AddressRefused) as caught:
        await resolve("hooks.example", ALLOW_NONE, "webhook_url", dns.look_up)
    assert caught.value.message == (
        "webhook_url: hooks.example leads to an address that is not public"
    )


async def test_the_addresses_of_a_name_of_this_machine_are_checked() -> None:
    with pytest.raises(AddressRefused, match="localhost leads to"):
        await resolve("localhost", ALLOW_NONE, "webhook_url")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1.", "2130706433", "0177.0.0.1", "::1"])
async def test_an_address_is_checked_and_not_looked_up(host: str) -> None:
    dns = FakeDns("93.184.216.34")
    with pytest.raises(AddressRefused, match="is not a public address"):
        await resolve(host, ALLOW_NONE, "webhook_url", dns.look_up)
    allowed = AllowList.parse(["127.0.0.1", "::1"])
    (address,) = await resolve(host, allowed, "webhook_url", dns.look_up)
    assert address.is_loopback
    assert dns.names == []


async def test_a_name_without_an_address_is_an_os_error() -> None:
    with pytest.raises(OSError, match=r"."):
        await resolve("nothing.invalid", ALLOW_NONE, "webhook_url")
    with pytest.raises(OSError, match="no address"):
        await resolve("hooks.example", ALLOW_NONE, "webhook_url", FakeDns().look_up)


async def test_an_allow_list_allows_its_networks_and_names_only() -> None:
    networks = AllowList.parse(["127.0.0.0/8", "10.1.0.0/16", "fd00::/8"])
    assert await resolve("127.0.0.1", networks, "webhook_url") == [ip_address("127.0.0.1")]
    check_literal("10.1.2.3", networks, "webhook_url")
    check_literal("::ffff:10.1.2.3", networks, "webhook_url")
    check_literal("fd12::1", networks, "webhook_url")
    with pytest.raises(AddressRefused):
        check_literal("10.2.0.1", networks, "webhook_url")
    names = AllowList.parse(["LOCALHOST."])
    assert await resolve("localhost", names, "webhook_url")
    with pytest.raises(AddressRefused):
        await resolve("127.0.0.1", names, "webhook_url")


@pytest.mark.parametrize("entry", ["bücher.internal", "BÜCHER.internal.", "xn--bcher-kva.internal"])
async def test_an_allowed_name_may_be_written_in_any_form(entry: str) -> None:
    allowed = AllowList.parse([entry])
    private = FakeDns("10.0.0.1").look_up
    assert await resolve("xn--bcher-kva.internal", allowed, "webhook_url", private)
    assert await resolve("xn--bcher-kva.internal.", allowed, "webhook_url", private)
    with pytest.raises(AddressRefused):
        await resolve("bucher.internal", allowed, "webhook_url", private)


@pytest.mark.parametrize(
    "entry",
    [
        *("", "10.0.0.0/33", "10.0.0.1/8", "http://x", "a b", "user@host", "1.2.3.4.5", "*"),
        *("１０.0.0.1", "127.0.0.1.", "a..b", "☃.internal", "host:80"),
    ],
)
def test_an_entry_that_is_neither_an_address_nor_a_name_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match="expected an address, a network or a host name"):
        AllowList.parse([entry])
