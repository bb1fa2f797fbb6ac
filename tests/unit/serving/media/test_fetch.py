"""The fetcher against a real TLS server on loopback.

The server's name resolves to loopback through an injected resolver, and loopback counts as public only here.
"""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import (
    ClientError,
    DeadlineExceeded,
    ImageFetchFailed,
    ImageTooLarge,
    ImageUrlRefused,
    PayloadTooLarge,
    QueueFull,
    ServingError,
    UnsupportedMediaType,
)
from serving.media.addresses import Address, is_public
from serving.media.fetch import FetchLimits, ImageFetcher
from serving.media.https_get import Streams
from serving.media.limits import MediaBudget, MediaLimits
from serving.media.pool import Caller
from serving.media.urls import Target
from serving.telemetry.events import Event, ImageFetched
from tests.support import media_files as files
from tests.support.image_urls import RULES, URLS, is_listed
from tests.support.tls_server import PictureServer, Script, answer, raw, redirect, write_certificate
from tests.support.waiting import lapse

NAME = "pictures.test"
PICTURE = files.encode(files.noise(8, 8))
LIMITS = FetchLimits(max_bytes=100_000, max_header_bytes=4096, timeout_s=5.0, connect_timeout_s=2.0)
SLOW = FetchLimits(max_bytes=100_000, max_header_bytes=4096, timeout_s=0.3, connect_timeout_s=0.2)
INTERNAL = ("127.0.0.1", "10.1.2.3", "Errno", "ssl", "certificate verify", "Traceback")


class Names:
    """A resolver by table, which remembers what it was asked. The last answer for a name is repeated."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self.asked: list[str] = []
        self.answers = {name.replace("_", "."): list(lists) for name, lists in answers.items()}

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        known = self.answers.get(host)
        if not known:
            raise OSError("[Errno -2] Name or service not known at 10.1.2.3")
        return known.pop(0) if len(known) > 1 else known[0]


def loopback_counts(address: Address) -> bool:
    return address.is_loopback or is_public(address)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_certificate(tmp_path_factory.mktemp("tls"), NAME)


@pytest.fixture
async def server(certificate: Path) -> AsyncIterator[PictureServer]:
    server = PictureServer(certificate)
    server.scripts["/a.png"] = answer(PICTURE)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
def trust(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate))


class Told:
    """A sink that keeps what it was told about fetches."""

    def __init__(self) -> None:
        self.fetches: list[tuple[str, int]] = []

    def __call__(self, event: Event) -> None:
        assert isinstance(event, ImageFetched)
        assert event.seconds >= 0
        self.fetches.append((event.outcome, event.num_bytes))


class Site:
    """A fetcher that may talk to one server, and the URLs of that server."""

    def __init__(
        self, server: PictureServer, trust: ssl.SSLContext, names: Names, limits: FetchLimits = LIMITS, *more: str
    ) -> None:
        self.names = names
        self.told = Told()
        self._port = server.port
        self.fetcher = ImageFetcher(
            frozenset({f"{NAME}:{server.port}", *more}),
            limits,
            resolver=names,
            is_allowed_address=loopback_counts,
            tls=trust,
            tell=self.told,
        )

    def url(self, path: str = "/a.png") -> str:
        return f"https://{NAME}:{self._port}{path}"

    async def fetch(self, path: str = "/a.png", tenant: str = "") -> bytes:
        return await self.fetcher.fetch(self.url(path), caller=Caller(tenant))

    async def refuse(self, path: str, error: type[ServingError], says: str) -> None:
        with pytest.raises(error, match=says) as caught:
            await self.fetch(path)
        assert type(caught.value) is error
        assert not any(text in caught.value.message for text in INTERNAL)
        assert self.told.fetches == [(error.code, 0)]


@pytest.fixture
def site(server: PictureServer, trust: ssl.SSLContext) -> Site:
    return Site(server, trust, Names(pictures_test=[["127.0.0.1"]]))


def slow_site(server: PictureServer, trust: ssl.SSLContext) -> Site:
    return Site(server, trust, Names(pictures_test=[["127.0.0.1"]]), SLOW)


# -- what is fetched, and how ----------------------------------------------------------------------------------------


async def test_picture_of_a_listed_host_comes_whole_and_is_counted(site: Site) -> None:
    assert await site.fetch() == PICTURE
    assert site.told.fetches == [("ok", len(PICTURE))]


async def test_request_names_the_host_and_carries_nothing_of_ours(site: Site, server: PictureServer) -> None:
    server.scripts["/b%20c?d=@"] = answer(PICTURE)
    await site.fetch("/b%20c?d=@")
    head = server.requests[0].decode()
    assert head.startswith("GET /b%20c?d=@ HTTP/1.1\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head.split("\r\n")[1:-2])}
    assert headers == {
        "host": f"{NAME}:{server.port}",
        "user-agent": "vireo",
        "accept": "image/jpeg, image/png, image/webp",
        "accept-encoding": "identity",
        "connection": "close",
    }
    assert server.names == [NAME]


async def test_proxies_of_the_environment_are_not_used(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert await site.fetch() == PICTURE


async def test_no_connection_and_no_cookie_is_kept_for_the_next_fetch(site: Site, server: PictureServer) -> None:
    server.scripts["/a.png"] = answer(PICTURE, "Set-Cookie: id=1", "Connection: keep-alive")
    await site.fetch()
    await site.fetch()
    assert len(server.names) == 2, "one TLS handshake each"
    assert b"cookie" not in server.requests[1].lower()


async def test_bodies_of_every_framing_come_whole(site: Site, server: PictureServer) -> None:
    start = b"HTTP/1.1 200 OK\r\nContent-Type: image/webp\r\n"
    server.scripts["/chunked"] = raw(start + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
    server.scripts["/until-close"] = closing_properly(start + b"\r\nabcde")
    server.scripts["/hints"] = raw(b"HTTP/1.1 103 Early Hints\r\n\r\n" + start + b"Content-Length: 5\r\n\r\nabcde")
    for path in server.scripts.keys() - {"/a.png"}:
        assert await site.fetch(path) == b"abcde"


def closing_properly(data: bytes) -> Script:
    async def script(writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        writer.close()
        await writer.wait_closed()

    return script


@pytest.mark.parametrize(
    "header", ["image/jpeg", "IMAGE/PNG", "image/webp; charset=binary", "application/octet-stream"]
)
async def test_media_types_of_pictures_pass(site: Site, server: PictureServer, header: str) -> None:
    server.scripts["/x"] = answer(PICTURE, f"Content-Type: {header}")
    assert await site.fetch("/x") == PICTURE


# -- who is connected to ---------------------------------------------------------------------------------------------


async def test_nothing_is_resolved_for_a_host_that_is_not_listed(site: Site) -> None:
    with pytest.raises(ImageUrlRefused, match="not on the list"):
        await site.fetcher.fetch("https://evil.test/")
    assert site.names.asked == []


async def test_empty_list_refuses_and_names_the_setting() -> None:
    names = Names()
    fetcher = ImageFetcher(frozenset(), LIMITS, resolver=names)
    with pytest.raises(ImageUrlRefused, match=r"media\.allowed_hosts is empty.*data: URL"):
        await fetcher.fetch("https://example.org/")
    assert names.asked == []


@pytest.mark.parametrize(
    "addresses",
    [
        ["10.1.2.3"],
        ["169.254.169.254"],
        ["::ffff:127.0.0.1"],
        ["64:ff9b::a00:1"],
        ["1.1.1.1", "10.1.2.3"],
        ["nonsense"],
    ],
)
async def test_listed_host_with_any_address_that_is_not_public_is_refused(
    server: PictureServer, trust: ssl.SSLContext, addresses: list[str]
) -> None:
    site = Site(server, trust, Names(pictures_test=[addresses]))
    await site.refuse("/a.png", ImageUrlRefused, "an address that is not public")
    assert server.names == []


async def test_loopback_is_refused_by_the_policy_that_ships(server: PictureServer, trust: ssl.SSLContext) -> None:
    fetcher = ImageFetcher({f"{NAME}:{server.port}"}, LIMITS, resolver=Names(pictures_test=[["127.0.0.1"]]), tls=trust)
    with pytest.raises(ImageUrlRefused, match="not public"):
        await fetcher.fetch(f"https://{NAME}:{server.port}/a.png")
    assert server.names == []


async def test_name_that_changes_its_mind_is_asked_once(server: PictureServer, trust: ssl.SSLContext) -> None:
    site = Site(server, trust, Names(pictures_test=[["127.0.0.1"], ["10.1.2.3"]]))
    assert await site.fetch() == PICTURE
    assert site.names.asked == [NAME]


async def test_name_that_changes_its_mind_between_hops_is_refused(server: PictureServer, trust: ssl.SSLContext) -> None:
    site = Site(server, trust, Names(pictures_test=[["127.0.0.1"], ["10.1.2.3"]]))
    server.scripts["/first"] = redirect("/a.png")
    await site.refuse("/first", ImageUrlRefused, "not public")
    assert len(server.requests) == 1


async def test_second_address_is_tried_when_the_first_is_dead(server: PictureServer, trust: ssl.SSLContext) -> None:
    site = Site(server, trust, Names(pictures_test=[["127.0.0.9", "127.0.0.1"]]))
    assert await site.fetch() == PICTURE


async def test_unknown_name_and_closed_port_fail_without_internal_text(
    server: PictureServer, trust: ssl.SSLContext
) -> None:
    await Site(server, trust, Names()).refuse("/a.png", ImageFetchFailed, "was not found")
    site = Site(server, trust, Names(pictures_test=[["127.0.0.9"]]))
    await site.refuse("/a.png", ImageFetchFailed, "cannot be connected to")


async def test_certificate_of_another_name_is_refused(
    server: PictureServer, trust: ssl.SSLContext, tmp_path: Path
) -> None:
    other = PictureServer(write_certificate(tmp_path, "other.test"))
    await other.start()
    try:
        trust.load_verify_locations(tmp_path / "other.test.pem")  # its authority is trusted: only the name is wrong
        site = Site(other, trust, Names(pictures_test=[["127.0.0.1"]]))
        await site.refuse("/a.png", ImageFetchFailed, "no valid certificate")
        assert other.requests == []
    finally:
        await other.stop()


async def test_certificate_of_an_unknown_authority_is_refused(server: PictureServer) -> None:
    site = Site(server, ssl.create_default_context(), Names(pictures_test=[["127.0.0.1"]]))
    await site.refuse("/a.png", ImageFetchFailed, "no valid certificate")
    assert server.requests == []


# -- redirects -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
async def test_redirect_within_the_list_is_followed(site: Site, server: PictureServer, status: str) -> None:
    server.scripts["/r"] = redirect(site.url(), status)
    assert await site.fetch("/r") == PICTURE
    assert site.names.asked == [NAME, NAME], "each hop is resolved and checked"


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("https://evil.test/", r"evil\.test, which is not on the list"),
        ("//evil.test/", r"evil\.test, which is not on the list"),
        (f"http://{NAME}/a.png", "not https"),
        (f"https://{NAME}/a.png", "not on the list"),  # another port
        ("https://127.0.0.1/", "an address"),
        ("https://[::1]/", "no host name"),
        ("file:///etc/passwd", "neither absolute nor https"),
        ("a.png", "neither absolute nor https"),
        ("https://me@evil.test/", "user name"),
        ("", "neither absolute nor https"),
    ],
)
async def test_redirect_is_checked_like_the_first_url(
    site: Site, server: PictureServer, location: str, says: str
) -> None:
    server.scripts["/r"] = redirect(location)
    await site.refuse("/r", ImageUrlRefused, says)
    assert len(server.requests) == 1
    assert site.names.asked == [NAME]


async def test_redirect_to_a_listed_host_with_a_private_address_is_refused(
    server: PictureServer, trust: ssl.SSLContext
) -> None:
    names = Names(pictures_test=[["127.0.0.1"]], inner_test=[["10.1.2.3"]])
    site = Site(server, trust, names, LIMITS, "inner.test")
    server.scripts["/r"] = redirect("https://inner.test/")
    await site.refuse("/r", ImageUrlRefused, "not public")


async def test_redirects_end_after_three(site: Site, server: PictureServer) -> None:
    server.scripts |= {"/3": redirect("/2"), "/2": redirect("/1"), "/1": redirect("/a.png"), "/4": redirect("/3")}
    assert await site.fetch("/3") == PICTURE
    site.told.fetches.clear()
    await site.refuse("/4", ImageFetchFailed, "more than 3 times")


async def test_loop_of_redirects_ends(site: Site, server: PictureServer) -> None:
    server.scripts["/loop"] = redirect("/loop")
    await site.refuse("/loop", ImageFetchFailed, "more than 3 times")
    assert len(server.requests) == 4


# -- hostile answers -------------------------------------------------------------------------------------------------


async def drip(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 90000\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await lapse(0.02)


async def pour(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"1000\r\n" + b"x" * 0x1000 + b"\r\n")
        await writer.drain()


async def endless_header(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X-Filler: " + b"x" * 100 + b"\r\n")
        await writer.drain()


async def endless_hints(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        await writer.drain()


async def silence(writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


OK = b"HTTP/1.1 200 OK\r\n"
HOSTILE = {
    "endless body": (pour, ImageTooLarge, "more than 100000 bytes"),
    "declared length over the limit": (
        raw(OK + b"Content-Type: image/png\r\nContent-Length: 100001\r\n\r\n"),
        ImageTooLarge,
        "more than 100000 bytes",
    ),
    "endless header": (endless_header, ImageFetchFailed, "proper HTTP"),
    "long header in one piece": (answer(PICTURE, "X-Filler: " + "x" * 5000), ImageFetchFailed, "proper HTTP"),
    "endless hints": (endless_hints, ImageFetchFailed, "proper HTTP"),
    "gzip bomb": (
        answer(gzip.compress(bytes(50_000_000)), "Content-Encoding: gzip"),
        ImageFetchFailed,
        "compressed body",
    ),
    "brotli": (answer(b"x", "Content-Encoding: br"), ImageFetchFailed, "compressed body"),
    "gzip as transfer encoding": (
        raw(OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
        ImageFetchFailed,
        "proper HTTP",
    ),
    "two lengths": (raw(OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx"), ImageFetchFailed, "proper HTTP"),
    "negative length": (raw(OK + b"Content-Length: -1\r\n\r\n"), ImageFetchFailed, "proper HTTP"),
    "two types": (
        answer(PICTURE, "Content-Type: image/png", "Content-Type: text/html"),
        ImageFetchFailed,
        "proper HTTP",
    ),
    "page": (
        answer(b"<html>", "Content-Type: text/html; charset=utf-8"),
        UnsupportedMediaType,
        "not declared as image",
    ),
    "SVG": (answer(b"<svg/>", "Content-Type: image/svg+xml"), UnsupportedMediaType, "not declared as image"),
    "not found": (answer(b"no", status="404 Not Found"), ImageFetchFailed, "status 404"),
    "part": (answer(b"no", status="206 Partial Content"), ImageFetchFailed, "status 206"),
    "not modified": (raw(b"HTTP/1.1 304 Not Modified\r\n\r\n"), ImageFetchFailed, "status 304"),
    "switch of protocols": (raw(b"HTTP/1.1 101 Go\r\nUpgrade: x\r\n\r\n"), ImageFetchFailed, "proper HTTP"),
    "cut off": (raw(OK + b"Content-Type: image/png\r\nContent-Length: 10\r\n\r\nabc"), ImageFetchFailed, "host of the"),
    "nothing": (raw(b""), ImageFetchFailed, "host of the"),
    "another protocol": (raw(b"SSH-2.0-OpenSSH_9.9\r\n"), ImageFetchFailed, "proper HTTP"),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_answer_is_refused_with_a_typed_error_of_ours(
    site: Site, server: PictureServer, name: str
) -> None:
    script, error, says = HOSTILE[name]
    server.scripts["/x"] = script
    await site.refuse("/x", error, says)


@pytest.mark.parametrize("script", [drip, silence])
async def test_slow_answer_ends_at_the_limit(server: PictureServer, trust: ssl.SSLContext, script: Script) -> None:
    server.scripts["/slow"] = script
    await slow_site(server, trust).refuse("/slow", ImageFetchFailed, r"longer than 0\.3 s, the limit")


async def test_host_that_accepts_and_does_not_greet_ends_at_the_connect_limit(trust: ssl.SSLContext) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        names = Names(pictures_test=[["127.0.0.1"]])
        fetcher = ImageFetcher({f"{NAME}:{port}"}, SLOW, resolver=names, is_allowed_address=loopback_counts, tls=trust)
        with pytest.raises(ImageFetchFailed, match="cannot be connected to"):
            await fetcher.fetch(f"https://{NAME}:{port}/")


async def test_deadline_of_the_request_ends_a_fetch_before_the_limit(site: Site, server: PictureServer) -> None:
    server.scripts["/slow"] = silence
    with pytest.raises(DeadlineExceeded):
        await site.fetcher.fetch(site.url("/slow"), time.monotonic() + 0.1)
    with pytest.raises(DeadlineExceeded):
        await site.fetcher.fetch(site.url("/slow"), time.monotonic() - 1.0)


async def test_budget_of_the_request_is_charged_while_the_body_is_read(site: Site, server: PictureServer) -> None:
    budget = MediaBudget(MediaLimits(max_bytes_per_request=len(PICTURE) + 50_000))
    assert await site.fetcher.fetch(site.url(), budget=budget) == PICTURE
    server.scripts["/pour"] = pour
    with pytest.raises(PayloadTooLarge, match="images of this request"):
        await site.fetcher.fetch(site.url("/pour"), budget=budget)


# -- many at a time --------------------------------------------------------------------------------------------------


async def test_fetches_beyond_the_bound_wait_and_beyond_the_queue_are_refused(
    server: PictureServer, trust: ssl.SSLContext
) -> None:
    gate = asyncio.Event()

    async def gated(writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        await answer(PICTURE)(writer)

    server.scripts["/gated"] = gated
    limits = FetchLimits(max_concurrent=2, max_waiting=1)
    site = Site(server, trust, Names(pictures_test=[["127.0.0.1"]]), limits)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(site.fetch("/gated")) for _ in range(3)]
        await server.wait_for_requests(2)
        with pytest.raises(QueueFull, match="1 image URLs wait"):
            await site.fetch("/gated")
        assert len(server.requests) == 2
        gate.set()
    assert [task.result() for task in tasks] == [PICTURE] * 3


async def test_tenants_take_turns_and_a_flood_refuses_itself(server: PictureServer, trust: ssl.SSLContext) -> None:
    gate, order = asyncio.Event(), list[str]()

    async def gated(writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        await answer(PICTURE)(writer)

    async def fetch(tenant: str) -> None:
        await site.fetch("/gated", tenant)
        order.append(tenant)

    server.scripts["/gated"] = gated
    limits = FetchLimits(max_concurrent=1, max_waiting=4)
    site = Site(server, trust, Names(pictures_test=[["127.0.0.1"]]), limits)
    flood = [asyncio.create_task(fetch("flood")) for _ in range(5)]
    await server.wait_for_requests(1)
    other = asyncio.create_task(fetch("other"))
    await asyncio.sleep(0)
    gate.set()
    ends = await asyncio.gather(*flood, return_exceptions=True)
    await other
    assert [type(end) for end in ends if end is not None] == [QueueFull]
    assert order.index("other") <= 2


async def test_cancelled_fetch_drops_its_connection_and_frees_its_place(
    server: PictureServer, trust: ssl.SSLContext
) -> None:
    hung_up = asyncio.Event()

    async def watch(writer: asyncio.StreamWriter) -> None:
        try:
            await drip(writer)
        except ConnectionError:
            hung_up.set()

    server.scripts["/watch"] = watch
    site = Site(server, trust, Names(pictures_test=[["127.0.0.1"]]), FetchLimits(max_concurrent=1))
    task = asyncio.create_task(site.fetch("/watch"))
    await server.wait_for_requests(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await site.fetch() == PICTURE
    await asyncio.wait_for(hung_up.wait(), 5)


# -- no string at all ------------------------------------------------------------------------------------------------


class Doorman:
    """A connector that lets nobody in and writes down who was to be met."""

    def __init__(self) -> None:
        self.met: list[tuple[str, int, str]] = []

    async def __call__(self, address: str, port: int, server_name: str, context: ssl.SSLContext) -> Streams:
        self.met.append((address, port, server_name))
        raise ConnectionRefusedError


class Anywhere:
    """A resolver that finds every name in the world at one address."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append((host, port))
        return ["1.1.1.1"]


TLS = ssl.create_default_context()


@given(URLS | st.sampled_from(["https://example.org/a", "https://x.cdn.example.org", "https://other.example:8443"]))
def test_no_string_makes_the_fetcher_connect_outside_of_the_list(url: str) -> None:
    doorman, resolver = Doorman(), Anywhere()
    fetcher = ImageFetcher(RULES, LIMITS, resolver=resolver, connector=doorman, tls=TLS)
    with pytest.raises(ClientError) as caught:
        asyncio.run(fetcher.fetch(url))
    assert all(is_listed(Target(host, port, b"/")) for host, port in resolver.asked)
    assert [(address, port, name) for address, port, name in doorman.met] == [
        ("1.1.1.1", port, host) for host, port in resolver.asked
    ]
    assert isinstance(caught.value, ImageFetchFailed if doorman.met else ImageUrlRefused)


@pytest.mark.parametrize("field", ["max_bytes", "max_header_bytes", "timeout_s", "connect_timeout_s", "max_concurrent"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_limits_that_bound_nothing_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        FetchLimits(**{field: value})  # type: ignore[arg-type]  # floats for integers


async def test_resolver_that_ships_is_asked_and_its_threads_are_freed() -> None:
    fetcher = ImageFetcher({"no-such-host.invalid"}, LIMITS)
    with pytest.raises(ImageFetchFailed, match="was not found"):
        await fetcher.fetch("https://no-such-host.invalid/")
    await fetcher.stop()
