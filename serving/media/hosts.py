"""The operator's list of hosts that images are fetched from. Light: settings are checked with it."""

from __future__ import annotations

import re
from collections.abc import Iterable

SETTING = "media.allowed_hosts"
HTTPS_PORT = 443
RULE_PATTERN = r"^\.?([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(:[1-9][0-9]{0,4})?$"
"""A rule of the list: ``example.org``, ``.example.org`` for every name below it but not itself, ``example.org:8443``.
Lower-case ASCII; international names as ``xn--...``."""

_RULE = re.compile(RULE_PATTERN)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


class AllowedHosts:
    """The operator's list. Immutable.

    Raises:
        ValueError: a rule is not of the form of ``RULE_PATTERN``, or is an address.
    """

    def __init__(self, rules: Iterable[str]) -> None:
        self._exact: set[tuple[str, int]] = set()
        self._below: set[tuple[str, int]] = set()
        for rule in rules:
            host, port = _split_rule(rule)
            (self._below if host.startswith(".") else self._exact).add((host, port))

    def __bool__(self) -> bool:
        return bool(self._exact or self._below)

    def allows(self, host: str, port: int) -> bool:
        """Whether a name, or a name above it, is on the list with that port."""
        if (host, port) in self._exact:
            return True
        labels = host.split(".")
        return any(("." + ".".join(labels[i:]), port) in self._below for i in range(1, len(labels)))


def is_address(host: str) -> bool:
    """Whether a host ends in a number: then it is an IPv4 address in one of its spellings, and no name."""
    return _NUMBER.fullmatch(host.rpartition(".")[2]) is not None


def _split_rule(rule: str) -> tuple[str, int]:
    if not _RULE.fullmatch(rule):
        raise ValueError(
            f"{rule[:100]!r} is no host of {SETTING}; write example.org, .example.org for the names below it, or "
            "example.org:8443, in lower-case ASCII (xn--... for other scripts)"
        )
    host, _, port = rule.partition(":")
    if is_address(host):
        raise ValueError(f"{rule!r} of {SETTING} is an address; give the name that is in the server's certificate")
    if port and int(port) > 65_535:
        raise ValueError(f"{rule!r} of {SETTING} has a port over 65535")
    return host, int(port or HTTPS_PORT)
