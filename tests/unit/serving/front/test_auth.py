"""API keys and loopback."""

from __future__ import annotations

import contextlib
import hashlib
import time

import pytest

from serving.errors import ConfigError, Forbidden, Unauthenticated
from serving.front.auth import Authenticator, Credentials, is_loopback

KEYS = {name: hashlib.sha256(f"key-of-{name}".encode()).hexdigest() for name in ("ada", "bob", "eve")}
REMOTE = "203.0.113.7"


@pytest.mark.parametrize("tenant", KEYS)
@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_key_gives_its_tenant_from_either_header(tenant: str, scheme: str) -> None:
    authenticator = Authenticator(KEYS, False)
    assert authenticator.authenticate(f"{scheme} key-of-{tenant}", None, REMOTE) == tenant
    assert authenticator.authenticate(None, f"key-of-{tenant}", REMOTE) == tenant
    assert authenticator.authenticate(f"{scheme} key-of-{tenant}", f"key-of-{tenant}", None) == tenant


@pytest.mark.parametrize(
    ("authorization", "x_api_key"),
    [
        (None, None),
        ("", None),
        (None, ""),
        ("Bearer", None),
        ("Bearer ", None),
        ("Basic a2V5", None),
        ("key-of-ada", None),
        ("Bearer wrong", None),
        (None, "wrong"),
        (None, "KEY-OF-ADA"),
        (None, KEYS["ada"]),
        ("Bearer key-of-ada", "key-of-bob"),
        (None, "k" * 10_000),
        (None, "schlüssel"),
        ("Bearer \ud800", None),
    ],
)
def test_anything_else_is_unauthenticated_even_on_loopback(authorization: str | None, x_api_key: str | None) -> None:
    with pytest.raises(Unauthenticated) as caught:
        Authenticator(KEYS, True).authenticate(authorization, x_api_key, "127.0.0.1")
    assert "key-of" not in caught.value.message


def seconds_of(authenticator: Authenticator, key: str) -> float:
    def once() -> float:
        began_s = time.perf_counter()
        with contextlib.suppress(Unauthenticated):
            authenticator.authenticate(None, key, REMOTE)
        return time.perf_counter() - began_s

    return min(once() for _ in range(50))


@pytest.mark.parametrize("key", ["key-of-ada", "wrong"])
def test_many_keys_take_no_longer_than_few(key: str) -> None:
    others = {f"t{number}": hashlib.sha256(str(number).encode()).hexdigest() for number in range(10_000)}
    assert seconds_of(Authenticator({**KEYS, **others}, False), key) < 10.0 * seconds_of(
        Authenticator(KEYS, False), key
    )


@pytest.mark.parametrize("ends_s", [(5.0, 20.0), (20.0, 5.0)])
def test_key_that_is_there_twice_counts_until_its_last_end(ends_s: tuple[float, float]) -> None:
    authenticator = Authenticator(KEYS, False, clock=lambda: 10.0)
    authenticator.use(Credentials(tuple(("ada", KEYS["ada"], until_s) for until_s in ends_s)))
    assert authenticator.authenticate(None, "key-of-ada", REMOTE) == "ada"


LOOPBACK = [
    "127.0.0.1",
    "127.8.8.8",
    "::1",
    "::ffff:127.0.0.1",
    "ipv4:127.0.0.1:1234",
    "ipv6:[::1]:123",
    "ipv6:%5B::1%5D:123",
    "ipv6:[::ffff:127.0.0.1]:9",
    "ipv6:%5B::ffff:127.0.0.1%5D:9",
    "unix:",
    "unix:/run/vireo.sock",
    "unix-abstract:x",
]
ELSEWHERE = [
    None,
    "",
    "203.0.113.7",
    "10.0.0.1",
    "0.0.0.0",
    "::",
    "2001:db8::1",
    "::ffff:10.0.0.1",
    "ipv4:10.0.0.1:1234",
    "ipv6:[2001:db8::1]:1",
    "ipv6:[::ffff:10.0.0.1]:1",
    "localhost",
    "testclient",
    "127.0.0.1.example.org",
    "ipv4:127.0.0.1",
    "ipv4:127.0.0.1:1:2",
    "ipv4:127.0.0.1@10.0.0.1:80",
    "xipv4:127.0.0.1:1",
    "dns:127.0.0.1:1",
    "127.0.0.1, 10.0.0.1",
    "0127.0.0.1",
    "2130706433",
]


@pytest.mark.parametrize("peer", LOOPBACK)
def test_without_keys_callers_on_this_machine_are_local(peer: str) -> None:
    assert is_loopback(peer)
    assert Authenticator({}, True).authenticate(None, None, peer) == "local"


@pytest.mark.parametrize("peer", ELSEWHERE)
def test_without_keys_everybody_else_is_forbidden(peer: str | None) -> None:
    with pytest.raises(Forbidden):
        Authenticator({}, True).authenticate("Bearer anything", None, peer)


HERE = [
    "localhost",
    "localhost:8000",
    "LocalHost:80",
    "app.localhost:8000",
    "127.0.0.1:8000",
    "127.9.9.9",
    "[::1]:8000",
]
NOT_HERE = [
    "evil.example",
    "evil.example:8000",
    "10.0.0.1",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "",
    "[",
]


def is_taken(authenticator: Authenticator, host: str | None, origin: str | None) -> bool:
    try:
        authenticator.check_browser(host, origin)
    except Forbidden:
        return False
    return True


@pytest.mark.parametrize("host", [None, *HERE])
@pytest.mark.parametrize("origin", [None, "http://localhost:3000", "http://127.0.0.1:8000", "http://[::1]:8000"])
def test_without_keys_pages_of_this_machine_are_served(host: str | None, origin: str | None) -> None:
    assert is_taken(Authenticator({}, True), host, origin)


@pytest.mark.parametrize("origin", ["null", "", "https://evil.example", "http://localhost.evil.example", "http://["])
def test_without_keys_pages_of_other_origins_are_forbidden(origin: str) -> None:
    with pytest.raises(Forbidden, match="other origins"):
        Authenticator({}, True).check_browser("localhost:8000", origin)


@pytest.mark.parametrize("host", NOT_HERE)
def test_without_keys_a_name_that_was_made_to_lead_here_is_forbidden(host: str) -> None:
    with pytest.raises(Forbidden, match="localhost"):
        Authenticator({}, True).check_browser(host, None)


@pytest.mark.parametrize("origins", [["https://app.example"], ["*"]])
def test_without_keys_pages_of_allowed_origins_are_served(origins: list[str]) -> None:
    authenticator = Authenticator({}, True, origins=origins)
    assert is_taken(authenticator, "localhost:8000", "https://app.example")


def test_with_keys_a_page_needs_one_like_anybody() -> None:
    assert is_taken(Authenticator(KEYS, False), "vireo.example", "https://evil.example")


@pytest.mark.parametrize(
    ("keys", "anonymous"),
    [
        ({}, False),
        ({"ada": "not a hash"}, True),
        ({"ada": "key-of-ada"}, False),
        ({"a": "0" * 64, "b": "0" * 64}, True),
    ],
)
def test_unsafe_configuration_does_not_start(keys: dict[str, str], anonymous: bool) -> None:
    with pytest.raises(ConfigError):
        Authenticator(keys, anonymous)


def test_configured_hash_may_be_in_capitals() -> None:
    assert Authenticator({"ada": KEYS["ada"].upper()}, False).authenticate(None, "key-of-ada", REMOTE) == "ada"
