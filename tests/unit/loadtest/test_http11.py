import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.clients.http11 import (
    BadResponse,
    ConnectionFailed,
    HttpPool,
    HttpResponse,
    ResponseParser,
    encode_request,
)
from tests.support.waiting import lapse, turns

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def written_by_h11(status: int, body: bytes, cuts: list[int], *, is_chunked: bool) -> bytes:
    """An answer as an independent implementation writes it."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    connection.next_event()
    connection.next_event()
    framing = ("transfer-encoding", "chunked") if is_chunked else ("content-length", str(len(body)))
    data = connection.send(h11.Response(status_code=status, headers=[framing, ("X-Thing", "a: b")])) or b""
    edges = [0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]
    for start, end in pairwise(edges):
        data += connection.send(h11.Data(data=body[start:end])) or b""
    return data + (connection.send(h11.EndOfMessage()) or b"")


def feed(data: bytes, cuts: list[int]) -> tuple[HttpResponse | None, ResponseParser]:
    """Feed in pieces; the time of piece k is k."""
    parser, response = ResponseParser(), None
    edges = [0, *sorted({cut % (len(data) + 1) for cut in cuts} - {0, len(data)}), len(data)]
    for now, (start, end) in enumerate(pairwise(edges)):
        assert response is None, "whole before its last byte"
        response = parser.feed(data[start:end], float(now))
    return response, parser


CUTS = st.lists(st.integers(0, 10_000), max_size=8)


@given(
    status=st.sampled_from([200, 404, 429, 503]),
    body=st.binary(max_size=300),
    cuts=CUTS,
    pieces=CUTS,
    is_chunked=st.booleans(),
)
def test_what_h11_writes_is_read_back_however_it_is_cut(
    status: int, body: bytes, cuts: list[int], pieces: list[int], is_chunked: bool
) -> None:
    response, _ = feed(written_by_h11(status, body, cuts, is_chunked=is_chunked), pieces)
    assert response is not None
    assert (response.status, response.body, response.headers["x-thing"]) == (status, body, "a: b")
    assert response.first_byte_at_s <= response.done_at_s


def test_the_first_byte_is_the_first_of_the_body_and_not_of_the_head() -> None:
    parser = ResponseParser()
    assert parser.feed(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n", 1.0) is None
    assert parser.feed(b"ab", 2.0) is None
    response = parser.feed(b"cd", 3.0)
    assert response is not None
    assert (response.first_byte_at_s, response.done_at_s) == (2.0, 3.0)


def test_informational_answers_are_skipped_and_chunk_extensions_and_trailers_are_ignored() -> None:
    data = (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3;x=y\r\nabc\r\n0\r\nTrailer: z\r\n\r\n"
    )
    response, _ = feed(data, [])
    assert response is not None
    assert (response.status, response.body) == (200, b"abc")


def test_an_answer_without_a_length_ends_with_the_connection() -> None:
    response, parser = feed(b"HTTP/1.0 200 OK\r\n\r\nabc", [])
    assert response is None
    ended = parser.end(9.0)
    assert ended is not None
    assert (ended.body, ended.done_at_s) == (b"abc", 9.0)


def test_an_answer_that_is_cut_short_is_none() -> None:
    _, parser = feed(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabc", [])
    assert parser.end(1.0) is None


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-5\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nab",
        b"x" * 70_000,
    ],
)
def test_bytes_that_are_no_answer_are_refused(data: bytes) -> None:
    with pytest.raises(BadResponse):
        feed(data, [])


def test_a_header_with_a_line_break_is_never_sent() -> None:
    with pytest.raises(ValueError, match="line break"):
        encode_request(HttpPool("http://h"), "GET", "/", headers={"authorization": "a\r\nx: y"})


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://"])
def test_a_target_that_is_no_http_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="must look like"):
        HttpPool(url)


def test_path_prefix_and_host_of_the_target_are_kept() -> None:
    request = encode_request(HttpPool("http://h:81/base/"), "POST", "/v1", body=b"xyz")
    assert request == b"POST /base/v1 HTTP/1.1\r\nhost: h:81\r\ncontent-length: 3\r\n\r\nxyz"


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[tuple[HttpPool, list[int]]]:
    """A server that notes each connection, and a pool for it."""
    connections: list[int] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(1)
        try:
            await handler(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    pool = HttpPool(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    try:
        yield pool, connections
    finally:
        await pool.close()
        server.close()
        await server.wait_closed()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
        if body.startswith(b"slow"):
            await lapse(0.02)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))


async def ask(pool: HttpPool, body: bytes) -> bytes:
    return (await pool.exchange(encode_request(pool, "POST", "/", body=body))).body


async def test_requests_in_turn_share_a_connection_and_requests_at_once_do_not() -> None:
    async with serving(echo) as (pool, connections):
        assert [await ask(pool, b"%d" % k) for k in range(5)] == [b"0", b"1", b"2", b"3", b"4"]
        assert len(connections) == 1
        answers = await asyncio.gather(*(ask(pool, b"slow%d" % k) for k in range(4)))
        assert answers == [b"slow0", b"slow1", b"slow2", b"slow3"]
        assert len(connections) == 4


async def test_the_late_answer_to_a_cancelled_request_is_never_given_to_another() -> None:
    async with serving(echo) as (pool, _):
        first = asyncio.create_task(ask(pool, b"slow-first"))
        await turns()
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert await ask(pool, b"second") == b"second"


async def test_a_connection_that_has_idled_too_long_is_not_used_again() -> None:
    now = [0.0]
    async with serving(echo) as (pool, connections):
        pool._now_s = lambda: now[0]
        await ask(pool, b"a")
        now[0] = 1.9
        await ask(pool, b"b")
        assert len(connections) == 1
        now[0] = 4.0
        await ask(pool, b"c")
        assert len(connections) == 2


async def test_a_server_that_asks_to_close_is_obeyed() -> None:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\nConnection: close\r\n\r\nx")

    async with serving(once) as (pool, connections):
        assert [await ask(pool, b""), await ask(pool, b"")] == [b"x", b"x"]
        assert len(connections) == 2


async def test_a_connection_that_breaks_in_the_answer_is_a_failure_and_is_not_retried() -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nx")

    async with serving(cut) as (pool, connections):
        with pytest.raises(ConnectionFailed):
            await ask(pool, b"")
        assert len(connections) == 1


async def test_nobody_listening_is_a_failed_connection(unused_tcp_port: int) -> None:
    pool = HttpPool(f"http://127.0.0.1:{unused_tcp_port}")
    with pytest.raises(ConnectionFailed):
        await ask(pool, b"")
    with pytest.raises(ConnectionFailed):
        await pool.connect()
