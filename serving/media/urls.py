"""Which image URLs may be fetched: https, a host on the operator's list, and nothing that two parsers read differently.

``httpx.URL`` is the only parser: the host that is compared with the list, the one that is resolved, the one in the
certificate check and the one in the Host header are the same string, and so is the path that is sent. It was chosen
over yarl, which removes tabs and line breaks from inside a host and folds look-alike characters into it, and over
urllib, which checks nothing. What it lets through and no honest URL of a picture has (user names, fragments,
backslashes, spaces, percent signs in hosts) is refused here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import httpx

from serving.errors import ImageUrlRefused

SETTING = "media.allowed_hosts"
HTTPS_PORT = 443
MAX_URL_CHARS = 2048
RULE_PATTERN = r"^\.?([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(:[1-9][0-9]{0,4})?$"
"""A rule of the list: ``example.org``, ``.example.org`` for every name below it but not itself, ``example.org:8443``.
Lower-case ASCII; international names as ``xn--...``."""

_RULE = re.compile(RULE_PATTERN)
_HOST = re.compile(r"(?=.{1,253}\Z)([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)+[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_NUMBER = re.compile(r"([0-9]+|0x[0-9a-f]*)")
_PATH = re.compile(rb"/[\x21-\x7e]*")
_UNWANTED = re.compile(r"[\x00-\x20\x7f-\xa0\\#\u2028\u2029]")
_REMEDY = "Send the image as a data: URL"


@dataclass(frozen=True, slots=True)
class Target:
    """A checked URL. ``host`` is lower-case ASCII, ``path`` the raw bytes of path and query."""

    host: str
    port: int
    path: bytes

    @property
    def authority(self) -> str:
        """Host, and port where it is not the usual one: the value of the Host header."""
        return self.host if self.port == HTTPS_PORT else f"{self.host}:{self.port}"


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

    def check(self, url: str) -> Target:
        """Check a URL, whoever it came from: a client, or a redirect.

        Raises:
            ImageUrlRefused: it may not be fetched; the message says why and what to do.
        """
        if not self:
            raise ImageUrlRefused(
                f"no image is fetched from a URL here: {SETTING} is empty. {_REMEDY}, or have the operator add the host"
            )
        parsed = _parse(url)
        host, port = _host(parsed), HTTPS_PORT if parsed.port is None else parsed.port
        if not self.allows(host, port):
            shown = host if port == HTTPS_PORT else f"{host}:{port}"
            raise ImageUrlRefused(
                f"image URL names {shown}, which is not on the list {SETTING}. {_REMEDY}, or have the operator add it"
            )
        return Target(host, port, _path(parsed))


def check_rule(rule: str) -> str:
    """Return a rule as it is; for settings.

    Raises:
        ValueError: see ``AllowedHosts``.
    """
    _split_rule(rule)
    return rule


def absolute(base: Target, location: bytes) -> str:
    """Spell out the place that a redirect names, for ``AllowedHosts.check``. Parses nothing: it only joins strings.

    Raises:
        ImageUrlRefused: it is neither absolute nor begins with a slash, or is not ASCII.
    """
    try:
        text = location.decode("ascii")
    except UnicodeDecodeError:
        raise ImageUrlRefused(f"image URL is redirected to something that is no URL. {_REMEDY}") from None
    if text.startswith("//"):
        return "https:" + text
    if text.startswith("/"):
        return f"https://{base.authority}{text}"
    if text[:6].lower() in ("https:", "http:/"):
        return text
    raise ImageUrlRefused(f"image URL is redirected to a place that is neither absolute nor https. {_REMEDY}")


def _split_rule(rule: str) -> tuple[str, int]:
    if not _RULE.fullmatch(rule):
        raise ValueError(
            f"{rule[:100]!r} is no host of {SETTING}; write example.org, .example.org for the names below it, or "
            "example.org:8443, in lower-case ASCII (xn--... for other scripts)"
        )
    host, _, port = rule.partition(":")
    if _NUMBER.fullmatch(host.rpartition(".")[2]):
        raise ValueError(f"{rule!r} of {SETTING} is an address; give the name that is in the server's certificate")
    if port and int(port) > 65_535:
        raise ValueError(f"{rule!r} of {SETTING} has a port over 65535")
    return host, int(port or HTTPS_PORT)


def _parse(url: str) -> httpx.URL:
    if len(url) > MAX_URL_CHARS:
        raise ImageUrlRefused(f"image URL has {len(url)} characters; the limit is {MAX_URL_CHARS}. {_REMEDY}")
    if _UNWANTED.search(url):
        raise ImageUrlRefused(
            "image URL has a space, a control character, a backslash or a fragment (#); encode it or leave it out"
        )
    try:
        parsed = httpx.URL(url)
        _ = parsed.raw_host, parsed.raw_path  # some errors come late
    except (httpx.InvalidURL, ValueError):  # its IDNA library raises ValueErrors of its own
        raise ImageUrlRefused(f"image URL cannot be parsed; send https://host/path. {_REMEDY}") from None
    if parsed.scheme != "https":
        raise ImageUrlRefused(f"image URL is not https, the only scheme that is fetched. {_REMEDY}")
    if parsed.userinfo:
        raise ImageUrlRefused("image URL has a user name or a password (or an @ before its path); leave it out")
    return parsed


def _host(url: httpx.URL) -> str:
    host = url.raw_host.decode("ascii", "replace")
    if not _HOST.fullmatch(host):
        raise ImageUrlRefused(
            f"image URL has no host name that is fetched from: a full name such as images.example.org. {_REMEDY}"
        )
    if _NUMBER.fullmatch(host.rpartition(".")[2]):
        raise ImageUrlRefused(f"image URL names an address; only host names are fetched from. {_REMEDY}")
    return host


def _path(url: httpx.URL) -> bytes:
    if not _PATH.fullmatch(url.raw_path):
        raise ImageUrlRefused("image URL has a path that cannot be sent; percent-encode it")
    return url.raw_path
