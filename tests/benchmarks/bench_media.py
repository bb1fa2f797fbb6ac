"""Where to decode: on the event loop, in a thread, in our worker pool, or in the standard library's process pool.

    python -m tests.benchmarks.bench_media      # prints two tables, writes docs/benchmarks/media.{json,md}

Every side does the same work on the same bytes: decode, hash, prepare for the model. Sides take turns within each
round. "one" is one call at a time, "many" keeps 16 in flight. "loop gap" is the longest time that the event loop was
deaf while "many" ran: what other requests feel. The second table compares ways to hand N bytes to another process and
get one byte back.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import socket
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np
from PIL import Image

from serving.media.limits import MediaLimits
from serving.media.pool import MediaPool
from serving.media.prepare import PreparedImage, prepare_encoded
from tests.benchmarks.common import markdown_table, out_dir, parser_of, print_table, provenance, write_results
from tests.support import media_files as files
from tests.support.media_processors import served_processors

MODEL = "dyn-perceiver-nano"
LIMITS = MediaLimits(tiny_pixels=0)
NUM_WORKERS = 2
IN_FLIGHT = 16
Side = Callable[[bytes], Awaitable[PreparedImage]]
_PROCESSOR = None  # of this process, for the sides that have no place of their own for it


def picture(height: int, width: int) -> files.Array:
    """Something between noise and a flat field: compresses like a photograph."""
    small = Image.fromarray(files.noise(height // 8, width // 8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def payloads() -> dict[str, bytes]:
    return {
        "64x64 PNG": files.encode(picture(64, 64)),
        "64x64 JPEG": files.encode(picture(64, 64), "JPEG", quality=90),
        "224x224 JPEG": files.encode(picture(224, 224), "JPEG", quality=90),
        "1920x1080 JPEG": files.encode(picture(1080, 1920), "JPEG", quality=90),
        "1920x1080 PNG": files.encode(picture(1080, 1920)),
    }


def prepare_here(data: bytes) -> PreparedImage:
    global _PROCESSOR
    _PROCESSOR = _PROCESSOR or served_processors(MODEL)(MODEL)
    return prepare_encoded(data, LIMITS, _PROCESSOR)


def sides(pool: MediaPool, executor: ProcessPoolExecutor) -> dict[str, Side]:
    async def in_place(data: bytes) -> PreparedImage:
        return prepare_here(data)

    async def thread(data: bytes) -> PreparedImage:
        return await asyncio.to_thread(prepare_here, data)

    async def ours(data: bytes) -> PreparedImage:
        return await pool.prepare(data, MODEL)

    async def library(data: bytes) -> PreparedImage:
        return await asyncio.get_running_loop().run_in_executor(executor, prepare_here, data)

    return {"in place": in_place, "thread": thread, "worker pool": ours, "ProcessPoolExecutor": library}


async def measure_one(side: Side, data: bytes, count: int) -> list[float]:
    times_ms = []
    for _ in range(count):
        started_s = time.perf_counter()
        await side(data)
        times_ms.append((time.perf_counter() - started_s) * 1e3)
    return times_ms


async def measure_many(side: Side, data: bytes, count: int) -> tuple[float, float]:
    """Images per second with ``IN_FLIGHT`` at a time, and the longest gap of the loop in ms."""
    remaining, gaps = iter(range(count)), [0.0]

    async def client() -> None:
        for _ in remaining:
            await side(data)
            await asyncio.sleep(0)

    async def listen() -> None:
        last_s = time.perf_counter()
        while True:
            await asyncio.sleep(0)
            now_s = time.perf_counter()
            gaps.append(now_s - last_s)
            last_s = now_s
            await asyncio.sleep(0.0005)
            gaps.append(time.perf_counter() - last_s - 0.0005)
            last_s = time.perf_counter()

    listener = asyncio.create_task(listen())
    started_s = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(IN_FLIGHT)))
    elapsed_s = time.perf_counter() - started_s
    listener.cancel()
    await asyncio.gather(listener, return_exceptions=True)
    return count / elapsed_s, max(gaps) * 1e3


async def measure_all(rounds: int) -> list[dict[str, Any]]:
    pool = MediaPool(LIMITS, NUM_WORKERS, served_processors(MODEL))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(NUM_WORKERS, mp_context=context) as executor:
        await pool.start()
        try:
            every = sides(pool, executor)
            return [row for name, data in payloads().items() for row in await _measure(name, data, every, rounds)]
        finally:
            await pool.stop()


async def _measure(name: str, data: bytes, every: dict[str, Side], rounds: int) -> list[dict[str, Any]]:
    count = 20 if len(data) > 200_000 else 200
    times: dict[str, list[float]] = {side: [] for side in every}
    rates: dict[str, list[tuple[float, float]]] = {side: [] for side in every}
    for side in every.values():
        await asyncio.gather(*(side(data) for _ in range(2 * NUM_WORKERS)))  # warm
    for _ in range(rounds):
        for label, side in every.items():
            times[label] += await measure_one(side, data, count)
            rates[label].append(await measure_many(side, data, 2 * count))
    return [
        {
            "image": name,
            "bytes": len(data),
            "side": side,
            "samples": len(times[side]),
            "one_p50_ms": round(float(np.percentile(times[side], 50)), 3),
            "one_p90_ms": round(float(np.percentile(times[side], 90)), 3),
            "many_per_s": round(float(np.median([rate for rate, _ in rates[side]])), 1),
            "loop_gap_ms": round(float(np.median([gap for _, gap in rates[side]])), 2),
        }
        for side in every
    ]


# -- transport -------------------------------------------------------------------------------------------------------


def _echo_socket(connection: socket.socket, num_bytes: int) -> None:
    buffer = bytearray(num_bytes)
    while True:
        view, filled = memoryview(buffer), 0
        while filled < num_bytes:
            count = connection.recv_into(view[filled:])
            if count == 0:
                return
            filled += count
        connection.sendall(b"!")


def _echo_shared(connection: socket.socket, num_bytes: int) -> None:
    while name := connection.recv(64):
        block = SharedMemory(name.decode())
        bytes(block.buf[:num_bytes])
        block.close()
        connection.sendall(b"!")


def _through_shared_memory(connection: socket.socket, data: bytes) -> None:
    block = SharedMemory(create=True, size=len(data))
    block.buf[: len(data)] = data
    connection.sendall(block.name.encode())
    connection.recv(1)
    block.close()
    block.unlink()


def _through_socket(connection: socket.socket, data: bytes) -> None:
    connection.sendall(data)
    connection.recv(1)


def measure_transport(rounds: int) -> list[dict[str, Any]]:
    ways = {"socket": (_echo_socket, _through_socket), "shared memory": (_echo_shared, _through_shared_memory)}
    context = multiprocessing.get_context("spawn")
    rows = []
    for num_bytes in (10_000, 500_000, 4_000_000):
        data, links = os.urandom(num_bytes), {}
        for way, (echo, _) in ways.items():
            ours, theirs = socket.socketpair()
            process = context.Process(target=echo, args=(theirs, num_bytes), daemon=True)
            process.start()
            theirs.close()
            links[way] = ours
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds * 50):
            for way, (_, send) in ways.items():
                started_s = time.perf_counter()
                send(links[way], data)
                times[way].append((time.perf_counter() - started_s) * 1e6)
        for way, link in links.items():
            link.close()
            p50_us = round(float(np.percentile(times[way][5:], 50)), 1)
            rows.append({"bytes": num_bytes, "way": way, "samples": len(times[way]) - 5, "p50_us": p50_us})
    return rows


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    args = parser.parse_args()
    rounds = 1 if args.quick else args.rounds
    document = {**provenance("media"), "workers": NUM_WORKERS, "in_flight": IN_FLIGHT, "model": MODEL}
    document |= {"sides": asyncio.run(measure_all(rounds)), "transport": measure_transport(rounds)}
    for part in ("sides", "transport"):
        print_table(list(document[part][0]), [list(row.values()) for row in document[part]])
    write_results(out_dir(args), document, "\n\n".join(_page(document[part]) for part in ("sides", "transport")))


def _page(rows: list[dict[str, Any]]) -> str:
    return markdown_table(list(rows[0]), [list(row.values()) for row in rows])


if __name__ == "__main__":
    main()
