"""Which client and which timer the load generator should use: lag, added latency and processor time of each.

    python -m tests.benchmarks.bench_loadtest_clients        # or: make bench-loadtest-clients

All sides send the same seeded Poisson arrivals through the same runner to servers in another process that do nothing:
ours (``loadtest/clients/http11.py``) with the timer descriptor and with asyncio's own timer, asyncio streams, aiohttp
and httpx with the timer descriptor, and our gRPC client. Sides alternate; the row of a side and rate is the median over
the rounds of each figure.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from loadtest.arrivals import poisson
from loadtest.clients.base import Client, Payload, Prepared, Reply
from loadtest.clients.grpc_classify import GrpcClassifyClient
from loadtest.clients.http_classify import HttpClassifyClient
from loadtest.clients.outcomes import read_classify_json
from loadtest.clock import Clock, LoopClock, MonotonicClock
from loadtest.execute import settled_memory
from loadtest.records import Outcome
from loadtest.runner import RunControl, run_open_loop
from loadtest.selfcheck import fake_server_process
from loadtest.summary import summarise
from loadtest.workloads.digits import draw_digit
from tests.benchmarks.common import (
    ROOT,
    markdown_table,
    out_dir,
    parser_of,
    print_table,
    provenance,
    write_results,
)

WARM_UP_S = 1.0
HEADER = (
    "side", "rate/s", "failed", "lag p50 ms", "lag p99 ms", "latency p50 ms", "latency p99 ms", "CPU µs/request"
)  # fmt: skip


class LibraryClient:
    """What the sides made of general libraries share: our own request, and our own reading of the answer."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._encoder = HttpClassifyClient(url)

    async def start(self) -> None:
        """Nothing."""

    def prepare(self, payload: Payload) -> Prepared:
        return self._encoder.prepare(payload)

    async def send(self, prepared: Prepared) -> Reply:
        status, body = await self.post(prepared.wire)
        done_s = time.monotonic()
        answer = read_classify_json(json.loads(body), len(prepared.payload.images))
        outcome = answer.outcome if status == 200 else Outcome.SERVER_ERROR
        return Reply(outcome=outcome, done_at_s=done_s, labels=answer.labels, exits=answer.exits, server=answer.server)

    async def post(self, request: bytes) -> tuple[int, bytes]:
        raise NotImplementedError

    async def close(self) -> None:
        """Nothing."""


class HttpxClient(LibraryClient):
    async def start(self) -> None:
        import httpx

        self._session = httpx.AsyncClient(limits=httpx.Limits(max_connections=None, max_keepalive_connections=None))

    async def post(self, request: bytes) -> tuple[int, bytes]:
        body = request.partition(b"\r\n\r\n")[2]
        headers = {"content-type": "application/json"}
        response = await self._session.post(f"{self.url}/v1/classify", content=body, headers=headers)
        return response.status_code, response.content

    async def close(self) -> None:
        await self._session.aclose()


class AiohttpClient(LibraryClient):
    async def start(self) -> None:
        import aiohttp

        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    async def post(self, request: bytes) -> tuple[int, bytes]:
        body = request.partition(b"\r\n\r\n")[2]
        headers = {"content-type": "application/json"}
        async with self._session.post(f"{self.url}/v1/classify", data=body, headers=headers) as response:
            return response.status, await response.read()

    async def close(self) -> None:
        await self._session.close()


class StreamsClient(LibraryClient):
    async def start(self) -> None:
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, request: bytes) -> tuple[int, bytes]:
        port = int(self.url.rpartition(":")[2])
        connection = self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", port)
        reader, writer = connection
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        body = await reader.readexactly(length)
        self._idle.append(connection)
        return int(head.split()[1]), body

    async def close(self) -> None:
        for _, writer in self._idle:
            writer.close()


async def serve_grpc() -> None:
    """The gRPC counterpart of ``loadtest.fake_server``: prints its port, answers at once."""
    import grpc
    from vireo_pb.vireo.v1 import vireo_pb2, vireo_pb2_grpc

    result = vireo_pb2.ClassifyResult(index=0, label="7", score=0.9, exit=1)
    answer = vireo_pb2.ClassifyResponse(model="fake", results=[result], vireo=vireo_pb2.Report(cache="miss"))

    class Servicer(vireo_pb2_grpc.VireoServicer):
        async def Classify(self, request: Any, context: Any) -> Any:
            return answer

    server = grpc.aio.server()
    vireo_pb2_grpc.add_VireoServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


@asynccontextmanager
async def grpc_server_process() -> AsyncIterator[str]:
    command = [sys.executable, "-m", "tests.benchmarks.bench_loadtest_clients", "--serve-grpc"]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        yield f"127.0.0.1:{int(await process.stdout.readline())}"
    finally:
        process.terminate()
        await process.wait()


def sides(url: str, address: str) -> dict[str, tuple[Callable[[], Client], Callable[[], Clock]]]:
    return {
        "ours, timer descriptor": (lambda: HttpClassifyClient(url), MonotonicClock),
        "ours, asyncio timer": (lambda: HttpClassifyClient(url), LoopClock),
        "asyncio streams": (lambda: StreamsClient(url), MonotonicClock),
        "aiohttp": (lambda: AiohttpClient(url), MonotonicClock),
        "httpx": (lambda: HttpxClient(url), MonotonicClock),
        "ours, gRPC": (lambda: GrpcClassifyClient(address), MonotonicClock),
    }


async def measure(client: Client, clock: Clock, rate: float, duration_s: float, seed: int) -> dict[str, float | None]:
    payloads = [Payload(images=(draw_digit(1, index)[0],)) for index in range(100)]
    await client.start()
    total_s = WARM_UP_S + duration_s
    try:
        with settled_memory():
            before_s = time.process_time()
            records = await run_open_loop(
                client,
                payloads,
                poisson(rate, seed=seed),
                duration_s=total_s,
                warm_up_s=WARM_UP_S,
                control=RunControl(clock=clock),
            )
            spent_s = time.process_time() - before_s
    finally:
        await client.close()
        clock.close()
    summary = summarise(records, window_s=(WARM_UP_S, total_s))
    lag, latency = summary.generator_lag, summary.latency
    assert lag is not None
    return {
        "failed": float(summary.num_offered - summary.num_ok),
        "lag_p50_s": lag.quantile(0.5).value_s,
        "lag_p99_s": lag.quantile(0.99).value_s,
        "latency_p50_s": latency.quantile(0.5).value_s,
        "latency_p99_s": latency.quantile(0.99).value_s,
        "cpu_s_per_request": spent_s / max(1, len(records)),
    }


async def run(rates: list[float], duration_s: float, num_rounds: int) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    async with fake_server_process() as url, grpc_server_process() as address:
        for number in range(num_rounds):
            for rate in rates:
                for name, (make_client, make_clock) in sides(url, address).items():
                    figures = await measure(make_client(), make_clock(), rate, duration_s, seed=number)
                    results.append({"side": name, "rate_per_s": rate, "round": number, **figures})
                    print(f"round {number}, {rate:g}/s, {name}: done", file=sys.stderr, flush=True)
    return results


def rows(results: list[dict[str, Any]]) -> list[list[object]]:
    groups: dict[tuple[float, str], list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault((result["rate_per_s"], result["side"]), []).append(result)
    return [_row(side, rate, group) for (rate, side), group in groups.items()]


def _row(side: str, rate: float, group: list[dict[str, Any]]) -> list[object]:
    def median(name: str, scale: float, digits: int) -> str | None:
        known = [result[name] for result in group if result[name] is not None]
        return f"{statistics.median(known) * scale:.{digits}f}" if known else None

    times = [median(name, 1e3, 3) for name in ("lag_p50_s", "lag_p99_s", "latency_p50_s", "latency_p99_s")]
    return [side, f"{rate:g}", median("failed", 1, 0), *times, median("cpu_s_per_request", 1e6, 0)]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rates", type=float, nargs="+", default=[200.0, 500.0, 1000.0])
    parser.add_argument("--duration-s", type=float, default=5.0, help="measured seconds of each side, rate and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve-grpc", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve_grpc:
        asyncio.run(serve_grpc())
        return
    origin = provenance("loadtest-clients")
    duration_s, num_rounds = (1.0, 1) if args.quick else (args.duration_s, args.rounds)
    results = asyncio.run(run(args.rates, duration_s, num_rounds))
    table = rows(results)
    print_table(HEADER, table)
    write_results(out_dir(args), {**origin, "runs": results}, markdown_table(HEADER, table))


if __name__ == "__main__":
    main()
