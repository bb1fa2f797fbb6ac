"""How good the generator is on this machine: its lag, and what it adds to the latency of a server that does nothing.

The server runs in its own process. All that is measured between "due" and "answered" is then the instrument: the lag of
the generator, two trips through the loopback interface, and the fake server's few microseconds.
``python -m loadtest.selfcheck`` prints the table; so does ``vireo loadtest-selfcheck``.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from loadtest.arrivals import poisson
from loadtest.clients.base import Payload
from loadtest.clients.http_classify import HttpClassifyClient
from loadtest.execute import settled_memory
from loadtest.runner import run_open_loop
from loadtest.summary import Summary, summarise
from loadtest.tables import Table, format_ms
from loadtest.workloads.digits import draw_digit

DEFAULT_RATES = (200.0, 500.0, 1000.0)
_WARM_UP_S = 1.0
_NUM_PAYLOADS = 100
_SEED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRow:
    """The instrument at one rate."""

    rate_per_s: float
    summary: Summary
    processor_s_per_request: float
    """Processor time of the generator's process, user and system."""


async def check_generator(rates_per_s: Sequence[float], *, duration_s: float) -> list[CheckRow]:
    """Poisson arrivals at each rate against the fake server, one rate after the other."""
    async with fake_server_process() as url:
        return [await _check_rate(url, rate, duration_s) for rate in rates_per_s]


def selfcheck_table(rows: Sequence[CheckRow]) -> Table:
    """The rows as a table."""
    head = (
        "rate/s",
        "n",
        "failed",
        "lag p50 ms",
        "lag p99 ms",
        "lag max ms",
        "latency p50 ms",
        "latency p99 ms",
        "CPU µs",
    )
    return Table(title="The generator against a server that does nothing", head=head, rows=tuple(map(_cells, rows)))


@asynccontextmanager
async def fake_server_process() -> AsyncIterator[str]:
    """The fake server in a process of its own; yields its base URL."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "loadtest.fake_server",
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        assert process.stdout is not None
        port = int(await process.stdout.readline())
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


async def _check_rate(url: str, rate_per_s: float, duration_s: float) -> CheckRow:
    client = HttpClassifyClient(url)
    payloads = [Payload(images=(draw_digit(_SEED, index)[0],)) for index in range(_NUM_PAYLOADS)]
    total_s = _WARM_UP_S + duration_s
    try:
        await client.start()
        with settled_memory():
            before_s = time.process_time()
            records = await run_open_loop(
                client, payloads, poisson(rate_per_s, seed=_SEED), duration_s=total_s, warm_up_s=_WARM_UP_S
            )
            spent_s = time.process_time() - before_s
    finally:
        await client.close()
    summary = summarise(records, window_s=(_WARM_UP_S, total_s))
    return CheckRow(rate_per_s=rate_per_s, summary=summary, processor_s_per_request=spent_s / max(1, len(records)))


def _cells(row: CheckRow) -> tuple[str, ...]:
    summary = row.summary
    lag = summary.generator_lag
    assert lag is not None, "an open loop has a lag"
    times = [
        lag.quantile(0.5).value_s,
        lag.quantile(0.99).value_s,
        lag.max_s,
        summary.latency.quantile(0.5).value_s,
        summary.latency.quantile(0.99).value_s,
    ]
    return (
        f"{row.rate_per_s:g}",
        str(summary.num_offered),
        str(summary.num_offered - summary.num_ok),
        *(format_ms(time_s) for time_s in times),
        f"{row.processor_s_per_request * 1e6:.0f}",
    )


def _main() -> None:
    table = selfcheck_table(asyncio.run(check_generator(DEFAULT_RATES, duration_s=8.0)))
    for row in (table.head, *table.rows):
        print("  ".join(f"{cell:>14}" for cell in row))


if __name__ == "__main__":
    _main()
