"""What the server's processes hold, read from a made-up /proc, from a real one and from a page of metrics."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from loadtest.clients.base import TargetError
from loadtest.memory import MemorySource, Process, growth_bytes, memory_tables, read_processes

MIB = 1 << 20


@asynccontextmanager
async def page(text: str) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A page of metrics: its URL, and the heads of what was asked."""
    heads: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(f"HTTP/1.1 200 OK\r\ncontent-length: {len(text)}\r\n\r\n{text}".encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/metrics", heads
    finally:
        server.close()


def add_process(proc: Path, pid: int, parent: int, command: str, rss_kb: int, anon_kb: int) -> None:
    folder = proc / str(pid)
    folder.mkdir()
    (folder / "stat").write_text(f"{pid} (a (strange) name) S {parent} 1 1 0")
    (folder / "cmdline").write_bytes(command.replace(" ", "\0").encode())
    sizes = f"VmRSS:\t{rss_kb} kB\nRssAnon:\t{anon_kb} kB\n" if rss_kb else ""
    (folder / "status").write_text(f"Name:\tshort name\nState:\tS (sleeping)\n{sizes}")


def test_a_process_is_read_with_all_that_descend_from_it_each_once(tmp_path: Path) -> None:
    add_process(tmp_path, 10, 1, "/usr/bin/vireo up", 100, 60)
    add_process(tmp_path, 11, 10, "ray::replica", 200, 150)
    add_process(tmp_path, 12, 11, "", 50, 40)
    add_process(tmp_path, 13, 11, "zombie", 0, 0)
    add_process(tmp_path, 20, 1, "somebody else", 999, 999)
    found = read_processes([10, 11], tmp_path)
    assert sorted(found) == [
        Process("ray::replica", 200 * 1024, 150 * 1024),
        Process("short name", 50 * 1024, 40 * 1024),
        Process("vireo up", 100 * 1024, 60 * 1024),
    ]


def test_this_process_has_a_size() -> None:
    found = read_processes([os.getpid()])
    assert found[0].resident_bytes > 10 * MIB
    assert found[0].anonymous_bytes is not None


def test_a_process_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="process 77"):
        read_processes([77], tmp_path)


async def test_metrics_are_summed_over_their_labels() -> None:
    text = '# HELP x y\nprocess_resident_memory_bytes{pid="1"} 1e6\nprocess_resident_memory_bytes 5\nother 9\n'
    async with page(text) as (url, heads):
        (found,) = await MemorySource(metrics_urls=(url,)).read()
    assert (found.resident_bytes, found.anonymous_bytes) == (1_000_005, None)
    assert heads[0].startswith(b"GET /metrics HTTP/1.1\r\n")


@pytest.mark.parametrize("text", ["other 9\n", "process_resident_memory_bytes much\n"])
async def test_a_page_without_the_metric_is_refused(text: str) -> None:
    async with page(text) as (url, _):
        with pytest.raises(TargetError, match="process_resident_memory_bytes"):
            await MemorySource(metrics_urls=(url,)).read()


async def test_nobody_at_the_page_is_told(unused_tcp_port: int) -> None:
    with pytest.raises(TargetError, match="cannot be read"):
        await MemorySource(metrics_urls=(f"http://127.0.0.1:{unused_tcp_port}/metrics",)).read()


def reading(gateway_mib: int, replica_mib: int) -> list[Process]:
    shared = 100 * MIB
    return [
        Process("gateway", shared + gateway_mib * MIB, gateway_mib * MIB),
        Process("replica", shared + replica_mib * MIB, replica_mib * MIB),
    ]


def test_growth_counts_from_the_second_repetition_and_is_told_by_process() -> None:
    readings = [reading(10, 10), reading(20, 30), reading(50, 50), reading(20, 33)]
    assert growth_bytes(readings) == 3 * MIB
    after, growth = memory_tables(readings)
    assert [row[0] for row in after.rows] == ["1", "2", "3", "4"]
    assert after.rows[3] == ("4", "2", "253.0", "53.0")
    assert growth.rows == (
        ("all", "250.0", "253.0", "+3.0", "50.0", "53.0", "+3.0"),
        ("gateway", "120.0", "120.0", "+0.0", "20.0", "20.0", "+0.0"),
        ("replica", "130.0", "133.0", "+3.0", "30.0", "33.0", "+3.0"),
    )


def test_without_enough_repetitions_there_is_no_growth_instead_of_none() -> None:
    assert growth_bytes([reading(1, 1), reading(2, 2)]) is None
    assert len(memory_tables([reading(1, 1), reading(2, 2)])) == 1
    assert memory_tables([[], []]) == []


def test_where_only_resident_memory_is_known_growth_is_of_that() -> None:
    readings = [[Process("url", size * MIB, None)] for size in (1, 5, 9)]
    assert growth_bytes(readings) == 4 * MIB
    assert memory_tables(readings)[1].rows[0][-3:] == ("–", "–", "–")
