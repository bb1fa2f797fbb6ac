"""Which addresses count as public: those of strangers, in every spelling that a resolver may use."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.media.addresses import SystemResolver, is_public, parse_address

PUBLIC = ["1.1.1.1", "93.184.215.14", "100.63.255.255", "100.128.0.0", "172.15.0.1", "172.32.0.1", "2606:4700::1111"]
NOT_PUBLIC = {
    "loopback": ("127.0.0.1", "127.255.255.254", "::1"),
    "unspecified": ("0.0.0.0", "0.1.2.3", "::"),
    "private": ("10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "fc00::1", "fd00:ec2::254"),
    "link-local": ("169.254.169.254", "169.254.0.1", "fe80::1", "fe80::1%eth0", "fec0::1"),
    "carrier-grade NAT": ("100.64.0.1", "100.127.255.255", "100.100.100.200"),
    "multicast": ("224.0.0.1", "239.255.255.255", "ff02::1", "ff0e::1"),
    "reserved": ("240.0.0.1", "255.255.255.255", "192.0.0.192", "198.18.0.1", "100::1", "4000::1", "5f00::1"),
    "documentation": ("192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1", "3fff::1"),
    "mapped IPv4": ("::ffff:127.0.0.1", "::ffff:1.1.1.1", "::ffff:a00:1"),
    "compatible IPv4": ("::127.0.0.1", "::1.1.1.1"),
    "6to4": ("2002:7f00:1::", "2002:101:101::1", "192.88.99.1"),
    "Teredo": ("2001:0:4136:e378:8000:63bf:3fff:fdd2",),
    "NAT64": ("64:ff9b::7f00:1", "64:ff9b::101:101", "64:ff9b:1::a00:1"),
    "ISATAP": ("2606:4700::5efe:a00:1", "2606:4700::200:5efe:101:101"),
    "zone": ("2606:4700::1111%eth0",),
    "host of an Azure machine": ("168.63.129.16",),
}


@pytest.mark.parametrize("text", PUBLIC)
def test_address_of_the_internet_is_public(text: str) -> None:
    address = parse_address(text)
    assert address is not None
    assert is_public(address)


@pytest.mark.parametrize("text", [text for texts in NOT_PUBLIC.values() for text in texts])
def test_address_with_a_meaning_of_its_own_is_not_public(text: str) -> None:
    address = parse_address(text)
    assert address is not None
    assert not is_public(address)


@given(st.integers(0, 2**32 - 1))
def test_no_ipv4_address_is_public_when_it_is_put_into_an_ipv6_address(number: int) -> None:
    for embedding in (
        number,
        0xFFFF << 32 | number,
        0x64_FF9B << 96 | number,
        0x2002 << 112 | number << 80,
        0x2606_4700 << 96 | 0x5EFE << 32 | number,
    ):
        assert not is_public(IPv6Address(embedding))


@given(st.integers(0, 2**32 - 1))
def test_nothing_that_python_calls_special_is_public(number: int) -> None:
    address = IPv4Address(number)
    special = address.is_private or address.is_loopback or address.is_link_local or address.is_multicast
    assert not (special and is_public(address))


@pytest.mark.parametrize("text", ["", "localhost", "1.1.1", "0x7f.0.0.1", "1.1.1.1 ", "[::1]", "/var/run/socket"])
def test_what_is_no_address_is_none(text: str) -> None:
    assert parse_address(text) is None


async def test_name_is_looked_up_whole_so_that_no_search_list_is_tried() -> None:
    asked: list[tuple[str, int]] = []

    def look_up(host: str, port: int) -> list[str]:
        asked.append((host, port))
        return ["1.1.1.1", "2606:4700::1111", "1.1.1.1"]

    resolve = SystemResolver(look_up)
    assert await resolve("example.org", 443) == ["1.1.1.1", "2606:4700::1111"]
    assert asked == [("example.org.", 443)]
    resolve.close()


async def test_system_says_that_a_name_is_not_there() -> None:
    resolve = SystemResolver()
    with pytest.raises(OSError, match=r"."):
        await resolve("no-such-host.invalid", 443)
    resolve.close()
