"""The load generator of bench_chat, in a process of its own: one closed loop, its figures as JSON.

    python -m tests.benchmarks.apps.chat_load --port P --workload fresh --clients 4 --requests 40 --seed 7

Every request is one picture and one question, streamed, greedy. Workloads:

    fresh            every picture differs
    repeated         seven requests in ten are, word for word, one of POOL requests that were answered before
    repeated-images  seven requests in ten show one of POOL pictures that were shown before, and ask something new

The POOL requests, or as many fresh ones, are sent before the clock starts. The same seed sends the same bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from statistics import mean
from typing import Any

from loadtest import Outcome, Payload, Record, RunLimits, run_closed_loop
from loadtest.clients.base import Question
from loadtest.clients.http_chat import HttpChatClient
from loadtest.execute import settled_memory
from loadtest.workloads.words import draw_words

POOL = 24
SHARE = 0.7
WORKLOADS = ("fresh", "repeated", "repeated-images")


class Maker:
    """Draws requests, each different from all before."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._number = 0

    def fresh(self, picture: bytes | None = None) -> Payload:
        self._number += 1
        width, height = self._args.size
        image = picture or draw_words(self._args.seed, self._number, width_px=width, height_px=height)
        question = Question(text=f"Page {self._number}: read the text.", max_tokens=self._args.max_tokens)
        return Payload(images=(image,), model=self._args.model, surface="http_chat", question=question)


def payloads(args: argparse.Namespace) -> tuple[list[Payload], list[Payload]]:
    """What is sent before the clock starts, and after."""
    maker, rng = Maker(args), random.Random(args.seed)
    pool = [maker.fresh() for _ in range(max(POOL, args.clients))]
    measured = []
    for _ in range(args.requests):
        if args.workload == "fresh" or rng.random() >= SHARE:
            measured.append(maker.fresh())
        else:
            known = rng.choice(pool)
            measured.append(known if args.workload == "repeated" else maker.fresh(known.images[0]))
    return pool, measured


async def load(args: argparse.Namespace) -> dict[str, Any]:
    client = HttpChatClient(f"http://127.0.0.1:{args.port}", is_streamed=True)
    await client.start()
    before, measured = payloads(args)
    limits = RunLimits(timeout_s=120.0)
    try:
        await run_closed_loop(client, before, args.clients, num_requests=len(before), limits=limits)
        with settled_memory():
            started_cpu_s = time.process_time()
            print("measuring", flush=True)
            records = await run_closed_loop(client, measured, args.clients, num_requests=len(measured), limits=limits)
            cpu_s = time.process_time() - started_cpu_s
    finally:
        await client.close()
    return figures(records) | {"generator_cpu_s": cpu_s}


def figures(records: Sequence[Record]) -> dict[str, Any]:
    """Rates over the time from the first request to the last answer; a failure has no latency and is counted."""
    good = [record for record in records if record.outcome is Outcome.OK]
    answers = [record.generated for record in good if record.generated is not None]
    ends = [record.done_at_s for record in records if record.done_at_s is not None]
    seconds = max(ends) - min(record.started_at_s for record in records)
    gaps = [gap for answer in answers for gap in answer.gaps_s]
    tokens = sum(answer.num_tokens or 0 for answer in answers)
    caches = Counter(record.server.cache for record in good if record.server is not None)
    return {
        "num_requests": len(records),
        "outcomes": dict(Counter(str(record.outcome) for record in records)),
        "first_error": next((record.error_message for record in records if record.error_message), None),
        "seconds": seconds,
        "requests_per_s": len(good) / seconds,
        "tokens_per_s": tokens / seconds,
        "tokens": tokens,
        "prompt_tokens": sum(answer.num_prompt_tokens or 0 for answer in answers),
        "tokens_per_arrival": tokens / max(1, len(gaps) + len(answers)),
        "latency_ms": _quantiles([record.latency_s for record in good if record.latency_s is not None]),
        "first_token_ms": _quantiles([s for record in good if (s := record.first_token_s) is not None]),
        "gap_ms": _quantiles(gaps),
        "caches": dict(caches),
        "texts": [_digest(record) for record in records],
    }


def _quantiles(values: Sequence[float]) -> dict[str, float | None]:
    ordered = sorted(values)
    if not ordered:
        return {"p50": None, "p99": None, "mean": None}
    return {
        "p50": round(1e3 * ordered[(len(ordered) - 1) // 2], 3),
        "p99": round(1e3 * ordered[-(-99 * len(ordered) // 100) - 1], 3),
        "mean": round(1e3 * mean(ordered), 3),
    }


def _digest(record: Record) -> str | None:
    if record.generated is None:
        return None
    return hashlib.sha256(record.generated.text.encode()).hexdigest()[:12]


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    return int(width), int(height)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", default="texthawk2-nano")
    parser.add_argument("--workload", choices=WORKLOADS, required=True)
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--requests", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--size", type=_size, default=(448, 448), help="WIDTHxHEIGHT of the pictures")
    print(json.dumps(asyncio.run(load(parser.parse_args()))))


if __name__ == "__main__":
    main()
