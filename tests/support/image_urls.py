"""Strings that are URLs of images, or nearly, or not at all; and a list of hosts to hold them against."""

from __future__ import annotations

from hypothesis import strategies as st

from serving.media.urls import Target

RULES = frozenset({"example.org", ".cdn.example.org", "other.example:8443", "xn--bcher-kva.example"})

_PIECES = st.sampled_from(
    ["https://", "http://", "https:", "//", "/", "\\", "@", ":", "#", "?", "%", "%2e", "%40", "%00", ".", "。", "443",
     "8443", "example.org", "eu.cdn.example.org", "evil.test", "127.0.0.1", "[::1]", "localhost", "xn--", "\t", "\n",
     " ", "\u200d", "ß", "①"]
)  # fmt: skip
URLS = st.one_of(st.text(), st.lists(_PIECES, max_size=10).map("".join), st.text().map(lambda text: "https://" + text))


def is_listed(target: Target) -> bool:
    """The rules above, spelt out a second time."""
    if target.port == 8443:
        return target.host == "other.example"
    return target.port == 443 and (
        target.host in ("example.org", "xn--bcher-kva.example") or target.host.endswith(".cdn.example.org")
    )
