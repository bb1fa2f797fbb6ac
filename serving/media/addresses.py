"""Which addresses may be connected to: those of the public Internet, and none that could mean a machine of ours.

Source: IANA's special-purpose address registries for IPv4 and IPv6. ``ipaddress.is_global`` differs between releases of
Python (multicast counts as global, some translation prefixes too), so the networks that matter are listed here as well.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final, TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Resolver: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]
"""(host, port) to the addresses of the host, as text. Raises OSError if there are none."""
LookUp: TypeAlias = Callable[[str, int], list[str]]
AddressPolicy: TypeAlias = Callable[[Address], bool]

_MAX_LOOKUPS = 4
_REFUSED_V4: Final = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT
        "127.0.0.0/8",
        "169.254.0.0/16",  # link-local, with the metadata services of clouds
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",  # relays of 6to4
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "168.63.129.16/32",  # public by number, and the host of the virtual machine on Azure
    )
)
_GLOBAL_UNICAST_V6: Final = IPv6Network("2000::/3")
"""Outside of it lie mapped and compatible IPv4 (::/8), NAT64 (64:ff9b::/16), ULA, link-local and multicast."""
_REFUSED_V6: Final = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # Teredo, ORCHID, benchmarks
        "2001:db8::/32",
        "2002::/16",  # 6to4: an IPv4 address inside
        "3fff::/20",
    )
)
_ISATAP: Final = (0x00005EFE, 0x02005EFE)
"""Upper half of an interface id whose lower half is an IPv4 address (RFC 5214)."""


def is_public(address: Address) -> bool:
    """Whether an address belongs to the public Internet and embeds no other one."""
    if not address.is_global or address.is_multicast or address.is_reserved:
        return False
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _REFUSED_V4)
    if address.scope_id is not None or address not in _GLOBAL_UNICAST_V6:
        return False
    embeds_ipv4 = (int(address) >> 32) & 0xFFFF_FFFF in _ISATAP
    return not embeds_ipv4 and not any(address in network for network in _REFUSED_V6)


def parse_address(text: str) -> Address | None:
    """An address from what a resolver said, or None."""
    try:
        return ip_address(text)
    except ValueError:
        return None


def look_up(host: str, port: int) -> list[str]:
    """Ask the system; blocks. Raises OSError if the name has no address."""
    answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return [str(answer[4][0]) for answer in answers]


class SystemResolver:
    """The system's resolver in threads of its own: a slow name server must not take those of everybody else."""

    def __init__(self, look_up: LookUp = look_up) -> None:
        self._look_up = look_up
        self._threads = ThreadPoolExecutor(_MAX_LOOKUPS, "media-dns")

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        """Look a name up, as it is: the dot at its end keeps the search list of resolv.conf out of it."""
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._threads, self._look_up, host + ".", port)
        return list(dict.fromkeys(found))

    def close(self) -> None:
        """Take no more lookups; those that run end by themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)
