"""Which image URLs may be fetched: https, a host on the operator's list, and nothing that two parsers read differently.

``httpx.URL`` is the only parser: the host that is compared with the list, the one that is resolved, the one in the
certificate check and the one in the Host header are the same string, and so is the path that is sent. It was chosen
over yarl, which removes tabs and line breaks from inside a host and folds look-alike characters into it, and over
urllib, which checks nothing. What it lets through and no honest URL of a picture has (user names, fragments,
backslashes, spaces, percent signs in hosts) is refused here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import httpx

from serving.errors import ImageUrlRefused
from serving.media.hosts import HTTPS_PORT, SETTING, AllowedHosts, is_address

MAX_URL_CHARS = 2048
_HOST = re.compile(r"(?=.{1,253}\Z)([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)+[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
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


def check_url(hosts: AllowedHosts, url: str) -> Target:
    """Check a URL, whoever it came from: a client, or a redirect.

    Raises:
        ImageUrlRefused: it may not be fetched; the message says why and what to do.
    """
    if not hosts:
        raise ImageUrlRefused(
            f"no image is fetched from a URL here: {SETTING} is empty. {_REMEDY}, or have the operator add the host"
        )
    parsed = _parse(url)
    host, port = _host(parsed), HTTPS_PORT if parsed.port is None else parsed.port
    if not hosts.allows(host, port):
        shown = host if port == HTTPS_PORT else f"{host}:{port}"
        raise ImageUrlRefused(
            f"image URL names {shown}, which is not on the list {SETTING}. {_REMEDY}, or have the operator add it"
        )
    return Target(host, port, _path(parsed))


def absolute(base: Target, location: bytes) -> str:
    """Spell out the place that a redirect names, for ``check_url``. Parses nothing: it only joins strings.

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
    if is_address(host):
        raise ImageUrlRefused(f"image URL names an address; only host names are fetched from. {_REMEDY}")
    return host


def _path(url: httpx.URL) -> bytes:
    if not _PATH.fullmatch(url.raw_path):
        raise ImageUrlRefused("image URL has a path that cannot be sent; percent-encode it")
    return url.raw_path
