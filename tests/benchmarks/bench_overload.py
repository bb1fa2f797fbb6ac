"""More than a system can do: what is answered in time, refused and how fast, with quality that bends and without.

    python -m tests.benchmarks.bench_overload                    # both parts; writes docs/benchmarks/overload.{json,md}
    python -m tests.benchmarks.bench_overload --only simulated   # four pools in virtual time: the same on any machine
    python -m tests.benchmarks.bench_overload --only served      # about four minutes

*Simulated*: the packaged models, priced by the tables beside their checkpoints, with up to three times as many requests
as they can answer at their best points (``schedulers/lab/cluster.py``). *Served*: two systems with the
packaged chat model, one of which has ``bending.enabled: false``. Each request shows a picture of its own, in open loop;
half of them ask for an answer within ``--latency-ms``, the others within the server's default deadline; three in ten
have low priority. What one side can do is measured first, in closed loop. Both systems are up the whole time, the one
that is not measured is stopped (SIGSTOP), and sides take turns in rotating order. A *good* answer is whole and in time,
counted from when its request was due. The generator is this process, on the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

from loadtest import Outcome, Payload, Record, RunLimits, run_closed_loop, run_open_loop
from loadtest.arrivals import poisson
from loadtest.clients.base import Budget, Question
from loadtest.clients.http_chat import HttpChatClient
from loadtest.workloads.words import draw_words
from schedulers.lab.simulator import percentile
from tests.benchmarks import overload_simulation
from tests.benchmarks.bench_gateway import awake
from tests.benchmarks.common import (
    markdown_table,
    out_dir,
    parser_of,
    print_table,
    provenance,
    write_results,
)
from tests.benchmarks.gateway_systems import System, running
from tests.support.ports import free_ports

Row = dict[str, Any]
MODEL = "texthawk2-nano"
SLOTS, DEADLINE_S, TIMEOUT_S = 4, 15.0, 40.0
LOADS = (0.8, 1.5, 3.0)
HEADER = (
    "load", "side", "sent", "good/s", "of its peak", "late answers", "expired", "refused", "refused after p50, p99 ms",
    "with a time to retry", "gave way",
)  # fmt: skip


def make_systems(folder: Path) -> list[System]:
    return [
        _system("ours-fixed", "fixed", folder / "f", bends=False),
        _system("ours-bending", "bending", folder / "b", bends=True),
    ]


def _system(name: str, title: str, run_dir: Path, *, bends: bool) -> System:
    http, grpc = free_ports(2)
    models = [{"id": MODEL, "options": {"max_num_seqs": SLOTS}}]
    settings = [
        f"run_dir={run_dir}",
        "log_level=warning",
        f"models={json.dumps(models)}",
        f"gateway.default_deadline_s={DEADLINE_S:g}",
        "redis.cache=false",
        f"bending.enabled={str(bends).lower()}",
    ]
    command = ["serving.cli", "up", "--no-check", "--port", str(http), "--grpc-port", str(grpc)]
    return System(
        name=name,
        title=title,
        commands=[[*command, *(word for setting in settings for word in ("--set", setting))]],
        ports={"http": http, "grpc": grpc},
        env={},
        run_dir=run_dir,
    )


# -- one measurement ---------------------------------------------------------------------------------------------------


class Maker:
    """Requests that differ from all before."""

    def __init__(self, latency_ms: float) -> None:
        self._numbers = count()
        self._latency_ms = latency_ms

    def take(self, number: int) -> list[Payload]:
        return [self._payload(next(self._numbers)) for _ in range(number)]

    def _payload(self, number: int) -> Payload:
        budget = Budget(
            latency_ms=self._latency_ms if number % 2 else None, priority="low" if number % 10 < 3 else "normal"
        )
        return Payload(
            images=(draw_words(11, number, width_px=896, height_px=672),),
            model=MODEL,
            surface="http_chat_unary",
            budget=budget,
            question=Question(text=f"What does line {number % 7 + 1} say?", max_tokens=24),
        )


@asynccontextmanager
async def _client(system: System) -> AsyncIterator[HttpChatClient]:
    client = HttpChatClient(f"http://127.0.0.1:{system.ports['http']}", is_streamed=False)
    await client.start()
    try:
        yield client
    finally:
        await client.close()


async def _capacity(system: System, maker: Maker, num_requests: int) -> float:
    """Answers a second with every place taken."""
    async with _client(system) as client:
        await run_closed_loop(client, maker.take(2 * SLOTS), SLOTS, num_requests=2 * SLOTS, limits=_LIMITS)
        records = await run_closed_loop(
            client, maker.take(num_requests), SLOTS, num_requests=num_requests, limits=_LIMITS
        )
    done = [record for record in records if record.outcome is Outcome.OK and record.done_at_s is not None]
    if len(done) < len(records) / 2:
        raise RuntimeError(f"{system.title}: {Counter(record.outcome for record in records)}")
    begun_s = min(record.sent_at_s or 0.0 for record in done)
    return len(done) / (max(record.done_at_s or 0.0 for record in done) - begun_s)


async def _overload(
    system: System, payloads: Sequence[Payload], rate: float, seconds: float, seed: int
) -> list[Record]:
    async with _client(system) as client:
        return await run_open_loop(client, payloads, poisson(rate, seed=seed), duration_s=seconds, limits=_LIMITS)


_LIMITS = RunLimits(timeout_s=TIMEOUT_S)


def _row(side: str, load: float, seconds: float, payloads: Sequence[Payload], records: Sequence[Record]) -> Row:
    allowed_s = [(p.budget.latency_ms / 1e3 if p.budget and p.budget.latency_ms else DEADLINE_S) for p in payloads]
    answered = [record for record in records if record.outcome is Outcome.OK]
    late = [record for record in answered if _took_s(record) > allowed_s[record.index]]
    refused = [record for record in records if record.outcome is Outcome.REJECTED]
    refused_ms = sorted(1e3 * ((record.done_at_s or 0.0) - (record.sent_at_s or 0.0)) for record in refused)
    in_time_s = [record.done_at_s or 0.0 for record in answered if record not in late]
    bent = sum("load" in record.server.degraded for record in answered if record.server is not None)
    return {
        "side": side,
        "load": load,
        "sent": len(records),
        "good_per_s": len(in_time_s) / max([seconds, *in_time_s]),
        "late": len(late),
        "expired": sum(record.outcome is Outcome.DEADLINE_EXCEEDED for record in records),
        "refused": len(refused),
        "refused_ms": {"p50": percentile(refused_ms, 0.5), "p99": percentile(refused_ms, 0.99)} if refused else None,
        "refused_within_10_ms": sum(ms <= 10.0 for ms in refused_ms),
        "refused_with_retry": sum(record.retry_after_s is not None for record in refused),
        "bent": bent,
        "answered": len(answered),
        "outcomes": dict(Counter(record.outcome.value for record in records)),
        "error_codes": dict(Counter(record.error_code for record in records if record.error_code)),
    }


def _took_s(record: Record) -> float:
    return (record.done_at_s or 0.0) - (record.scheduled_at_s or 0.0)


def served(args: argparse.Namespace) -> tuple[float, list[Row]]:
    """Capacity, and a row for each load and side."""
    seconds = args.duration_s or (6.0 if args.quick else 25.0)
    maker = Maker(args.latency_ms)
    rows = []
    with tempfile.TemporaryDirectory(prefix="vo-", ignore_cleanup_errors=True) as name:
        systems = make_systems(Path(name))
        with running(systems):
            capacities = []
            for system in systems:
                with awake(system):
                    capacities.append(asyncio.run(_capacity(system, maker, 2 * SLOTS if args.quick else 6 * SLOTS)))
            rate = capacities[0]
            for number, load in enumerate(LOADS):
                payloads = maker.take(round(2 * load * rate * seconds) + 4)
                for system in systems if number % 2 == 0 else systems[::-1]:
                    with awake(system):
                        records = asyncio.run(_overload(system, payloads, load * rate, seconds, seed=number))
                    rows.append(_row(system.title, load, seconds, payloads, records))
                    print(rows[-1], file=sys.stderr, flush=True)
    for row in rows:
        row["of_peak"] = row["good_per_s"] / max(one["good_per_s"] for one in rows if one["side"] == row["side"])
    return rate, rows


def cells(row: Row) -> list[object]:
    times = row["refused_ms"]
    return [
        f"{row['load']:g}x", row["side"], row["sent"], f"{row['good_per_s']:.2f}", f"{row['of_peak']:.0%}", row["late"],
        row["expired"], row["refused"], None if times is None else f"{times['p50']:.1f}, {times['p99']:.1f}",
        row["refused_with_retry"], f"{row['bent']} of {row['answered']}",
    ]  # fmt: skip


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--only", choices=("simulated", "served"), help="one part; the other stays as it was")
    parser.add_argument("--duration-s", type=float, help="of one measurement; default 25")
    parser.add_argument("--latency-ms", type=float, default=4000.0, help="what half of the served requests ask for")
    args = parser.parse_args()
    folder = out_dir(args)
    before = folder / "overload.json"
    parts: Row = json.loads(before.read_text())["parts"] if args.only and before.is_file() else {}
    origin = provenance("overload")
    made = {key: origin[key] for key in ("date", "commit", "command", "hardware")}
    if args.only != "served":
        parts["simulated"] = {**made, "rows": overload_simulation.simulate()}
    if args.only != "simulated":
        capacity, rows = served(args)
        parts["served"] = {**made, "capacity_per_s": capacity, "latency_ms": args.latency_ms, "rows": rows}
    texts = []
    if "simulated" in parts:
        table = [overload_simulation.cells(row) for row in parts["simulated"]["rows"]]
        print_table(overload_simulation.HEADER, table)
        texts.append(f"Simulated ({_said(parts['simulated'])}).\n\n{markdown_table(overload_simulation.HEADER, table)}")
    if "served" in parts:
        part = parts["served"]
        table = [cells(row) for row in part["rows"]]
        print_table(HEADER, table)
        texts.append(
            f"Served ({_said(part)}): {MODEL}, {part['capacity_per_s']:.2f} answers/s at its best points; half of the "
            f"requests within {part['latency_ms']:g} ms.\n\n{markdown_table(HEADER, table)}"
        )
    write_results(folder, {**origin, "parts": parts}, "\n\n".join(texts))


def _said(part: Row) -> str:
    return f"{part['date']}, commit {part['commit']}, load before {part['hardware']['load_average_before']}"


if __name__ == "__main__":
    main()
