"""Which URLs pass, and that no string at all gets past the list."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serving.errors import ImageUrlRefused
from serving.media.hosts import AllowedHosts
from serving.media.urls import Target, absolute, check_url
from tests.support.image_urls import RULES, URLS, is_listed

HOSTS = AllowedHosts(RULES)


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://example.org/a.png", Target("example.org", 443, b"/a.png")),
        ("https://example.org", Target("example.org", 443, b"/")),
        ("HTTPS://EXAMPLE.org:443/A%20b?x=1&y=@", Target("example.org", 443, b"/A%20b?x=1&y=@")),
        ("https://example.org:+443/", Target("example.org", 443, b"/")),  # odd, and without a second meaning
        ("https://eu.cdn.example.org/", Target("eu.cdn.example.org", 443, b"/")),
        ("https://a.b.cdn.example.org/", Target("a.b.cdn.example.org", 443, b"/")),
        ("https://other.example:8443/x", Target("other.example", 8443, b"/x")),
        ("https://bücher.example/ü", Target("xn--bcher-kva.example", 443, b"/%C3%BC")),
        ("https://XN--BCHER-KVA.example/", Target("xn--bcher-kva.example", 443, b"/")),
    ],
)
def test_url_of_a_listed_host_passes_with_its_parts(url: str, target: Target) -> None:
    assert check_url(HOSTS, url) == target


REFUSED = {
    "other host": "https://evil.example/",
    "name below an exact rule": "https://www.example.org/",
    "the name of a suffix rule itself": "https://cdn.example.org/",
    "suffix without a dot": "https://evilcdn.example.org/",
    "listed name as a label": "https://example.org.evil.example/",
    "listed name as the end of a label": "https://notexample.org/",
    "plain http": "http://example.org/",
    "file": "file:///etc/passwd",
    "ftp": "ftp://example.org/",
    "data": "data:image/png;base64,AAAA",
    "no scheme": "example.org/a.png",
    "no slashes": "https:example.org/a.png",
    "scheme-relative": "//example.org/a.png",
    "no host": "https:///a.png",
    "empty": "",
    "user": "https://me@example.org/",
    "user and password": "https://me:pw@example.org/",
    "listed name as a user": "https://example.org@evil.example/",
    "listed name as user and password": "https://example.org:443@evil.example/",
    "escaped slash before a user": "https://example.org%2f@evil.example/",
    "two users": "https://a@example.org@evil.example/",
    "backslash as a slash": "https://evil.example\\@example.org/",
    "backslash after the host": "https://example.org\\.evil.example/",
    "fragment before a user": "https://evil.example#@example.org/",
    "fragment": "https://example.org/a.png#x",
    "empty fragment": "https://example.org/a.png#",
    "port that is not listed": "https://example.org:8443/",
    "port zero": "https://example.org:0/",
    "port of plain http": "https://example.org:80/",
    "port of a rule left out": "https://other.example/",
    "port too high": "https://example.org:65979/",
    "trailing dot": "https://example.org./",
    "two dots": "https://example..org/",
    "escaped host": "https://ex%61mple.org/",
    "escaped dot": "https://example%2eorg/",
    "escaped zero": "https://example.org%00.evil.example/",
    "full-width letters that fold to no listed name": "https://ｅvil.example/",
    "look-alike letter": "https://exаmple.org/",
    "ideographic full stop": "https://evil。example/",
    "soft hyphen": "https://exam\u00adple.org/",
    "tab in the host": "https://exa\tmple.org/",
    "line break in the path": "https://example.org/\r\nX: y",
    "leading space": " https://example.org/",
    "trailing space": "https://example.org/ ",
    "zero byte": "https://example.org/\0",
    "IPv4": "https://127.0.0.1/",
    "decimal IPv4": "https://2130706433/",
    "hexadecimal IPv4": "https://0x7f.0.0.1/",
    "short IPv4": "https://127.1/",
    "octal IPv4": "https://0177.0.0.1/",
    "IPv4 with a trailing dot": "https://127.0.0.1./",
    "full-width IPv4": "https://１２７.0.0.1/",
    "IPv6": "https://[::1]/",
    "mapped IPv6": "https://[::ffff:127.0.0.1]/",
    "IPv6 with a zone": "https://[fe80::1%25eth0]/",
    "bracketed name": "https://[example.org]/",
    "single label": "https://localhost/",
    "surrogate": "https://example.org/\ud800",
    "too long": "https://example.org/" + "a" * 2048,
}


@pytest.mark.parametrize("name", REFUSED)
def test_url_that_tricks_some_parser_is_refused(name: str) -> None:
    with pytest.raises(ImageUrlRefused):
        check_url(HOSTS, REFUSED[name])


def test_every_url_is_refused_by_an_empty_list_with_the_setting_and_the_remedy() -> None:
    with pytest.raises(ImageUrlRefused, match=r"media\.allowed_hosts is empty.*data: URL"):
        check_url(AllowedHosts(()), "https://example.org/")


def test_host_that_is_not_listed_is_named_with_the_setting() -> None:
    with pytest.raises(ImageUrlRefused, match=r"evil\.example, which is not on the list media\.allowed_hosts"):
        check_url(HOSTS, "https://evil.example/")


@pytest.mark.parametrize(
    "rule",
    ["", ".", "org", ".org", "Example.org", "*.example.org", "https://example.org", "example.org/", "example.org.",
     "127.0.0.1", "1.2.3.0x7f", "[::1]", "example.org:0", "example.org:65536", "example.org:", "exämple.org", "a b.org",
     "example.org\n", "me@example.org"],
)  # fmt: skip
def test_rule_of_another_form_is_refused_at_the_start(rule: str) -> None:
    with pytest.raises(ValueError, match=r"media\.allowed_hosts"):
        AllowedHosts([rule])


# -- no string passes that names another host ------------------------------------------------------------------------


@given(URLS)
@example("https://example.org@evil.test/")
@example("https://evil.test\\@example.org")
def test_no_string_passes_that_names_a_host_outside_of_the_list(url: str) -> None:
    try:
        target = check_url(HOSTS, url)
    except ImageUrlRefused:
        return
    assert is_listed(target)
    assert target.path.startswith(b"/")
    assert not set(target.path) & set(b" \r\n\t\0")


@given(st.one_of(st.binary(), URLS.map(lambda url: url.encode("utf-8", "surrogatepass"))))
@example(b"//evil.test/")
@example(b"/\\evil.test")
@example(b"@evil.test/")
@example(b".evil.test/")
def test_no_redirect_leads_outside_of_the_list(location: bytes) -> None:
    try:
        target = check_url(HOSTS, absolute(Target("example.org", 443, b"/a/b"), location))
    except ImageUrlRefused:
        return
    assert is_listed(target)


@pytest.mark.parametrize(
    ("location", "target"),
    [
        (b"/b.png?c", Target("other.example", 8443, b"/b.png?c")),
        (b"//example.org/b", Target("example.org", 443, b"/b")),
        (b"https://example.org/b", Target("example.org", 443, b"/b")),
    ],
)
def test_redirect_is_joined_to_where_it_came_from(location: bytes, target: Target) -> None:
    assert check_url(HOSTS, absolute(Target("other.example", 8443, b"/a"), location)) == target
