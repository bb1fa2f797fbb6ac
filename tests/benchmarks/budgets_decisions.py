"""Part of ``bench-budgets``: microseconds of one decision, by requests that wait and by replicas.

A decision is all that a request needs before it runs: how long its tenant would wait, a plan over the nine points of
the shipped classifier, the least loaded replica, a place in a fair queue, and later its turn. Each step is timed alone,
in CPU time of the thread, with Python's garbage collector on, as in service. The queue, of 100 tenants, is held at its
length: replicas answer as much as comes.
"""

from __future__ import annotations

import statistics
import time
from random import Random
from typing import Any, Final

from schedulers.fair_queue import FairQueue
from schedulers.fair_wait import FairWait
from schedulers.lab.traces import Request
from schedulers.least_loaded import LeastLoaded
from schedulers.plan import Budget, Load, Plan, plan
from schedulers.policy import Unit
from schedulers.routing import rank
from schedulers.types import UnitArrived
from serving.cli.simulated import shipped_models
from tests.benchmarks.common import markdown_table

SIZES: Final = ((100, 10), (1_000, 100), (10_000, 1_000), (100_000, 1_000), (100_000, 10_000))
STEPS: Final = ("wait", "plan", "route", "queue")
_TENANTS: Final = 100


class Bench:
    """A gateway and a queue, held at a length."""

    def __init__(self, num_waiting: int, num_replicas: int) -> None:
        self.rng, self.now_s, self.number = Random(num_waiting), 0.0, 0
        self.model = next(model for model in shipped_models() if "classify" in model.tasks)
        self.points, self.work = self.model.planned(), self.model.work(Request(arrived_s=0.0))
        self.names = [f"replica-{number}" for number in range(num_replicas)]
        self.ledger, self.waiting, self.queue = LeastLoaded(self.names), FairWait(), FairQueue[Unit]()
        self.calls: list[tuple[str, str]] = []
        self.times_us: dict[str, list[float]] = {step: [] for step in (*STEPS, "decision", "told", "rank_all")}
        for _ in range(num_waiting):
            self.arrive()
        for times in self.times_us.values():
            times.clear()

    def arrive(self) -> None:
        """One request, up to its place in the queue."""
        self.number += 1
        self.now_s += 3e-4 / len(self.names)
        tenant, number = f"tenant-{self.rng.randrange(_TENANTS)}", self.number
        budget = Budget(latency_s=1e6, energy_j=1e6, quality_floor=0.5)
        unit = Unit(UnitArrived(unit_id=number, work=None, tenant=tenant, deadline_s=self.rng.random()), 0.0, number)
        marks = [time.thread_time_ns()]
        queued_s = self.waiting.wait_s(tenant, 3e-4) / len(self.names)
        marks.append(time.thread_time_ns())
        made = plan(self.points, self.work, budget, Load(queued_s=queued_s))
        marks.append(time.thread_time_ns())
        assert isinstance(made, Plan)
        name = self.ledger.least(self.now_s).replica_id
        self.ledger.start(name, str(number), made.busy_s, self.now_s)
        marks.append(time.thread_time_ns())
        unit.joules = made.energy_j
        self.queue.add(unit)
        self.waiting.add(tenant, made.busy_s)
        marks.append(time.thread_time_ns())
        self.calls.append((name, str(number)))
        self.note(marks)

    def note(self, marks: list[int]) -> None:
        """The steps between the marks."""
        for step, start_ns, end_ns in zip(STEPS, marks, marks[1:], strict=False):
            self.times_us[step].append((end_ns - start_ns) / 1e3)
        self.times_us["decision"].append((marks[-1] - marks[0]) / 1e3)

    def turn(self) -> None:
        """One arrives; whoever's turn it is goes, and a replica says that it did something."""
        self.arrive()
        start_ns = time.thread_time_ns()
        (unit,), _ = self.queue.take(1)
        self.waiting.remove(unit.tenant, unit.joules / self.model.watts)
        took_us = (time.thread_time_ns() - start_ns) / 1e3
        for step in ("queue", "decision"):
            self.times_us[step][-1] += took_us
        name, call = self.calls.pop(self.rng.randrange(len(self.calls)))
        start_ns = time.thread_time_ns()
        self.ledger.finish(name, call)
        self.times_us["told"].append((time.thread_time_ns() - start_ns) / 1e3)

    def rank_all(self) -> None:
        """The plain twin of the routing step."""
        start_ns = time.thread_time_ns()
        rank([self.ledger.load(name, self.now_s) for name in self.names])
        self.times_us["rank_all"].append((time.thread_time_ns() - start_ns) / 1e3)


def measure(*, quick: bool = False) -> dict[str, Any]:
    """Each size."""
    rows = []
    for num_waiting, num_replicas in SIZES[:2] if quick else SIZES:
        bench = Bench(num_waiting, num_replicas)
        for number in range(200 if quick else 5_000):
            bench.turn()
            if number % 500 == 0:
                bench.rank_all()
        rows.append({"num_waiting": num_waiting, "num_replicas": num_replicas, **_figures(bench.times_us)})
    return {"tenants": _TENANTS, "rows": rows}


def _figures(times_us: dict[str, list[float]]) -> dict[str, float]:
    found = {f"{step}_us": round(statistics.median(times), 2) for step, times in times_us.items()}
    found["decision_p99_us"] = round(sorted(times_us["decision"])[int(0.99 * len(times_us["decision"]))], 2)
    return found


def lines(document: dict[str, Any]) -> list[str]:
    """A table."""
    header = ("waiting", "replicas", "decision", "p99", *STEPS, "a call ends", "routing by ranking all")
    rows = [
        (
            f"{row['num_waiting']:,}",
            f"{row['num_replicas']:,}",
            row["decision_us"],
            row["decision_p99_us"],
            *(row[f"{step}_us"] for step in STEPS),
            row["told_us"],
            row["rank_all_us"],
        )
        for row in document["rows"]
    ]
    return [
        f"CPU microseconds, medians; {document['tenants']} tenants. The aim: 50 at 10,000 waiting and 1,000 replicas.",
        "",
        *markdown_table(header, rows).splitlines(),
    ]
