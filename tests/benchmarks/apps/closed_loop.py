"""The load generator of bench_gateway, in a process of its own: one closed-loop measurement, its figures as JSON.

    python -m tests.benchmarks.apps.closed_loop http|grpc --port P --clients N --duration-s S --warm-up-s W

Sends one 64x64 PNG of a digit per request, all different. ``--labels N`` sends N requests one by one instead and adds
their labels.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from loadtest import Outcome, Payload, Record, RunLimits, run_closed_loop
from loadtest.clients.base import Client
from loadtest.clients.grpc_classify import GrpcClassifyClient
from loadtest.clients.http_classify import HttpClassifyClient
from loadtest.stats import quantile
from loadtest.workloads.digits import draw_digit

IMAGE_PX = 64


def payloads(count: int) -> list[Payload]:
    """Distinct pictures, the same in every run."""
    drawn = [draw_digit(1, index, size_px=IMAGE_PX) for index in range(count)]
    return [Payload(images=(data,), expected_labels=(label,)) for data, label in drawn]


def make_client(surface: str, port: int) -> Client:
    if surface == "http":
        return HttpClassifyClient(f"http://127.0.0.1:{port}")
    return GrpcClassifyClient(f"127.0.0.1:{port}")


async def load(args: argparse.Namespace) -> dict[str, Any]:
    client = make_client(args.surface, args.port)
    await client.start()
    limits = RunLimits(timeout_s=20.0)
    cpu_s = time.process_time()
    try:
        if args.labels:
            records = await run_closed_loop(client, payloads(args.labels), 1, num_requests=args.labels, limits=limits)
            return {"labels": [record.labels[0] if record.labels else None for record in records]}
        pictures = payloads(args.pictures)
        cpu_s = time.process_time()
        records = await run_closed_loop(
            client, pictures, args.clients, duration_s=args.duration_s, warm_up_s=args.warm_up_s, limits=limits
        )
    finally:
        await client.close()
    return figures(records, args.warm_up_s) | {"cpu_s": time.process_time() - cpu_s, "num_sent": len(records)}


def figures(records: Sequence[Record], warm_up_s: float) -> dict[str, Any]:
    """Of the requests sent after the warm-up: rate of good answers, latencies (failures count as infinitely slow)."""
    measured = [record for record in records if not record.is_warm_up]
    good = [record for record in measured if record.outcome is Outcome.OK]
    latencies = sorted(record.latency_s for record in good if record.latency_s is not None)
    end_s = max((record.done_at_s for record in measured if record.done_at_s is not None), default=warm_up_s)
    failed = len(measured) - len(good)
    server = next((record.server for record in good if record.server is not None), None)
    exits = Counter(record.exits[0] for record in good if record.exits)
    return {
        "num_measured": len(measured),
        "outcomes": dict(Counter(str(record.outcome) for record in measured)),
        "first_error": next((record.error_message for record in measured if record.error_message), None),
        "requests_per_s": len(good) / (end_s - warm_up_s) if end_s > warm_up_s else 0.0,
        "p50_ms": _ms(quantile(latencies, 0.5, num_failed=failed).value_s),
        "p99_ms": _ms(quantile(latencies, 0.99, num_failed=failed).value_s),
        "operating_point": server.operating_point if server else None,
        "cache": server.cache if server else None,
        "exits": {str(number): count for number, count in sorted(exits.items())},
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1e3 * seconds, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("surface", choices=("http", "grpc"))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--duration-s", type=float, default=3.0)
    parser.add_argument("--warm-up-s", type=float, default=0.5)
    parser.add_argument("--pictures", type=int, default=1000, help="distinct pictures, sent in turn")
    parser.add_argument("--labels", type=int, default=0)
    print(json.dumps(asyncio.run(load(parser.parse_args()))))


if __name__ == "__main__":
    main()
