"""Offers one side an open-loop load and says what became of it."""

from __future__ import annotations

import asyncio
import gc
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import mean
from typing import Any, TypeAlias

import numpy as np

from loadtest.arrivals import bounded, poisson
from loadtest.stats import quantile
from serving.replica.driver import Answer, Driver, Stay
from tests.benchmarks.early_exit_sides import Side, Workload, make_driver

#: The generator looks for due samples this often. What is due then is sent together, late by at most this and its own
#: work; the lag counts as latency, and is reported.
TICK_S = 1e-3
GOOD_SHARE = 0.99


_Answered: TypeAlias = tuple[int, int, bool]


@dataclass(slots=True)
class _Run:
    driver: Driver
    side: Side
    deadline_s: float
    start_s: float
    due_s: list[float]
    sent_s: list[float]
    done_s: list[float]
    #: (class, exit, whether the deadline chose it) of each request that was answered.
    answers: list[_Answered | None]
    refusals: Counter[str] = field(default_factory=Counter)

    def send(self, index: int, pixels: Any) -> None:
        due_s = self.start_s + self.due_s[index]
        self.sent_s[index] = self.driver.clock() - due_s
        stay = Stay(partial(self.heard, index, due_s))
        self.driver.take(stay, pixels, deadline_s=due_s + self.deadline_s, thresholds=self.side.point.thresholds)

    def heard(self, index: int, due_s: float, stay: Stay) -> None:
        answer = stay.outcome
        if isinstance(answer, Answer):
            self.answers[index] = (int(answer.outputs["probabilities"].argmax()), answer.exit_index, answer.degraded)
        elif answer is not None:
            self.refusals[answer.code] += 1
        self.done_s[index] = self.driver.clock() - due_s

    async def offer(self, images: Sequence[Any], pictures: Sequence[int]) -> None:
        """No task for each sample: a replica has none either, but one for each call of up to 64."""
        clock, index = self.driver.clock, 0
        while index < len(self.due_s):
            now_s = clock() - self.start_s
            while index < len(self.due_s) and self.due_s[index] <= now_s:
                self.send(index, images[pictures[index]])
                index += 1
            await asyncio.sleep(TICK_S)
        await self.driver.stop()


async def measure(
    work: Workload, side: Side, rate_per_s: float, duration_s: float, deadline_s: float, seed: int
) -> dict[str, Any]:
    """Offer ``rate_per_s`` Poisson arrivals for ``duration_s``; pictures are drawn from the whole held-out set."""
    due_s = bounded(poisson(rate_per_s, seed=seed), duration_s=duration_s)
    pictures = np.random.default_rng((seed, 1)).integers(len(work.images), size=len(due_s)).tolist()
    driver, engine, totals = make_driver(work, side)
    engine.pictures = pictures
    driver.start()
    gc.collect()
    count = len(due_s)
    run = _Run(driver, side, deadline_s, driver.clock() + 0.01, due_s, [0.0] * count, [0.0] * count, [None] * count)
    cpu_s, thread_s, wall_s = time.process_time(), time.thread_time(), time.perf_counter()
    await run.offer(work.images, pictures)
    wall_s = time.perf_counter() - wall_s
    cpu = {"process_s": time.process_time() - cpu_s, "loop_thread_s": time.thread_time() - thread_s}
    return {
        "side": side.name,
        "rate_per_s": rate_per_s,
        "seed": seed,
        "num_requests": count,
        **_outcomes(work, run, pictures, duration_s),
        **_engine_use(work, engine.batches),
        "joules_per_answer": _per(totals.elapsed_s * work.watts, sum(a is not None for a in run.answers)),
        "engine_busy_share": engine.busy_s / wall_s,
        "hand_over_share": (totals.elapsed_s - engine.busy_s) / wall_s,
        "cpu_us_per_request": {name: 1e6 * value / max(count, 1) for name, value in cpu.items()},
    }


def is_sustained(row: dict[str, Any]) -> bool:
    """Whether 99% of all requests were answered in time at an exit of their own choice."""
    return bool(row["good_share"] >= GOOD_SHARE)


def _outcomes(work: Workload, run: _Run, pictures: list[int], duration_s: float) -> dict[str, Any]:
    answered = [(i, a) for i, a in enumerate(run.answers) if a is not None]
    in_time = [(i, a) for i, a in answered if run.done_s[i] <= run.deadline_s]
    good = [i for i, (_, _, degraded) in in_time if not degraded]
    latencies = sorted(run.done_s[i] for i, _ in answered)
    count = len(run.due_s)
    return {
        "good_share": len(good) / max(count, 1),
        "goodput_per_s": len(good) / duration_s,
        "in_time_share": len(in_time) / max(count, 1),
        "degraded_share": sum(degraded for _, (_, _, degraded) in answered) / max(count, 1),
        "refused": dict(run.refusals),
        "accuracy": _accuracy(work, answered, pictures),
        "p50_ms": _ms(quantile(latencies, 0.5, num_failed=count - len(latencies)).value_s),
        "p99_ms": _ms(quantile(latencies, 0.99, num_failed=count - len(latencies)).value_s),
        "lag_p99_ms": _ms(sorted(run.sent_s)[math.ceil(0.99 * count) - 1]) if count else None,
        "exit_shares": _shares(Counter(exit_index for _, (_, exit_index, _) in answered), work.runner.num_stages),
    }


def _engine_use(work: Workload, batches: dict[int, list[int]]) -> dict[str, Any]:
    return {
        "mean_batch": [round(mean(batches[s]), 2) if s in batches else None for s in range(work.runner.num_stages)],
        "num_batches": sum(len(sizes) for sizes in batches.values()),
    }


def _accuracy(work: Workload, answered: list[tuple[int, _Answered]], pictures: list[int]) -> float | None:
    if work.labels is None or not answered:
        return None
    return mean(float(label == work.labels[pictures[i]]) for i, (label, _, _) in answered)


def _shares(exits: Counter[int], num_exits: int) -> list[float]:
    total = max(exits.total(), 1)
    return [round(exits[index] / total, 4) for index in range(num_exits)]


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1e3 * seconds, 2)


def _per(amount: float, count: int) -> float | None:
    return amount / count if count else None
