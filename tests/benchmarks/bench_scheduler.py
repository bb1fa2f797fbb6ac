"""What one call of the early-exit scheduler costs, by number of waiting samples; and what policies do, simulated.

    python -m tests.benchmarks.bench_scheduler            # prints its tables, writes docs/benchmarks/scheduler.json
    python -m tests.benchmarks.bench_scheduler --only costs     # one part anew: costs, policies or shapes

Decision cost: a queue of N samples of 8 tenants is held at N. In turn, a full batch finishes (half of its samples
survive) and the scheduler picks the next one; then as many samples arrive as left. Each ``handle`` call is timed alone,
with Python's garbage collector on, as in service: its wall time, and the CPU time of its thread, which other processes
on the machine do not add to. Deadlines differ and lie far enough ahead that none passes.

*Floor*: what the bare work of the same two calls takes in this interpreter, without a policy and without a check. A
unit, a timer among 10,000 and an entry in one sorted chunk are made; 16 entries taken, 16 confidences compared, 8
entries put back, 8 answers and a slice made.

Policies: the same seeded traces through three policies on the virtual clock. Shapes: every kind of work past
saturation, and the largest gap between two tenants that wait, beside its bound (``schedulers.lab.shapes``).
"""

from __future__ import annotations

import json
import math
import time
from bisect import insort
from collections.abc import Callable
from heapq import heapify, heappush
from random import Random
from typing import Any

from schedulers.cost import CostModel, measured_stages
from schedulers.lab.baselines import DynamicBatchingConfig, full_network, no_rebatching
from schedulers.lab.shapes import SHAPES
from schedulers.lab.simulator import ExitWorld, Simulation, TraceUnit, exit_unit, lognormal_noise, percentile, simulate
from schedulers.policies.exits import ExitConfig, ExitWork, early_exits
from schedulers.policy import Unit
from schedulers.types import Decision, Finish, RunSlice, Scheduler, SliceFinished, SliceResult, UnitArrived
from tests.benchmarks.common import out_dir, parser_of, provenance

BATCH_SIZES = (1, 2, 4, 8, 16, 32)
NUM_STAGES = 4
#: Milliseconds (fixed, per sample) of each stage: a launch-bound GPU, something between, a small CPU.
COST_SHAPES = {
    "fixed": ((3.0, 0.05), (2.0, 0.04), (2.0, 0.04), (1.5, 0.03)),
    "mixed": ((1.5, 0.25), (1.0, 0.20), (1.0, 0.20), (0.8, 0.15)),
    "linear": ((0.3, 0.50), (0.2, 0.40), (0.2, 0.40), (0.2, 0.30)),
}
EXIT_SHARES = (0.50, 0.25, 0.15, 0.10)
SHAPE_LOADS = (0.5, 0.8, 1.0, 1.5, 2.0, 3.0)
WEIGHTS = {"flood": 1.0, "usual": 1.0, "rare": 0.5}
PARTS = ("costs", "policies", "shapes")
DOCUMENT = ("decision_cost", "policies", "shapes")
POLICIES: dict[str, Callable[[CostModel], Scheduler]] = {
    "full network, dynamic batches": lambda cost: full_network(cost, DynamicBatchingConfig()),
    "early exit, no re-batching": lambda cost: no_rebatching(cost, DynamicBatchingConfig()),
    "early exit, ours": lambda cost: early_exits(cost, ExitConfig()),
}


def cost_model(shape: str) -> CostModel:
    stages = COST_SHAPES[shape]
    return measured_stages(BATCH_SIZES, [[(fixed + each * n) / 1e3 for n in BATCH_SIZES] for fixed, each in stages])


# -- decision cost ---------------------------------------------------------------------------------------------------


class Bench:
    """One scheduler held at ``num_waiting`` samples, and the (wall, CPU) microseconds of its calls."""

    def __init__(self, num_waiting: int, max_batch: int, seed: int) -> None:
        config = ExitConfig(max_batch=max_batch, max_waiting=num_waiting + 4 * max_batch, max_age_s=1e6)
        self.rng = Random(seed)
        self.scheduler = early_exits(cost_model("mixed"), config)
        self.now_s, self.next_id, self.num_waiting = 0.0, 0, num_waiting
        self.batch: RunSlice | None = None
        self.arrival_us: list[tuple[float, float]] = []
        self.finished_us: list[tuple[float, float]] = []
        self.batch_sizes: list[int] = []
        while self.scheduler.counts().waiting < num_waiting:
            self.arrive()
        self.arrival_us.clear()

    def timed(self, times_us: list[tuple[float, float]], event: UnitArrived | SliceFinished) -> list[Decision]:
        cpu_ns = time.thread_time_ns()
        wall_ns = time.perf_counter_ns()
        decisions = self.scheduler.handle(self.now_s, event)
        wall_ns = time.perf_counter_ns() - wall_ns
        times_us.append((wall_ns / 1e3, (time.thread_time_ns() - cpu_ns) / 1e3))
        self.batch = next((d for d in decisions if isinstance(d, RunSlice)), self.batch)
        return decisions

    def arrive(self) -> None:
        event = UnitArrived(
            unit_id=self.next_id,
            deadline_s=self.now_s + self.rng.uniform(1e3, 1e5),
            work=ExitWork((0.5, 0.5, 0.5, 0.5)),
            tenant=f"tenant-{self.rng.randrange(8)}",
        )
        self.next_id += 1
        self.timed(self.arrival_us, event)

    def finish(self) -> None:
        batch = self.batch
        assert batch is not None, "nothing runs"
        results = tuple(SliceResult(unit_id=s, report=self.rng.random()) for s in batch.unit_ids)
        self.now_s += 0.005
        event = SliceFinished(slice_id=batch.slice_id, results=results, elapsed_s=0.005)
        self.batch = None
        self.timed(self.finished_us, event)
        assert self.batch is not None, "the queue ran dry"
        self.batch_sizes.append(len(self.batch.unit_ids))

    def turn(self) -> None:
        self.finish()
        for _ in range(self.num_waiting - self.scheduler.counts().waiting):
            self.arrive()


def decision_cost(num_waiting: int, max_batch: int, num_turns: int) -> dict[str, Any]:
    bench = Bench(num_waiting, max_batch, seed=num_waiting + max_batch)
    for _ in range(num_turns // 10):
        bench.turn()
    for times_us in (bench.arrival_us, bench.finished_us, bench.batch_sizes):
        times_us.clear()
    for _ in range(num_turns):
        bench.turn()
    bench.scheduler.check_invariants()
    return {
        "num_waiting": num_waiting,
        "max_batch": max_batch,
        "mean_batch": round(sum(bench.batch_sizes) / len(bench.batch_sizes), 1),
        **summary("arrival", bench.arrival_us),
        **summary("batch_finished", bench.finished_us),
    }


def floor_us(num_waiting: int, max_batch: int, num_turns: int) -> dict[str, float]:
    """CPU microseconds of the bare work of an arrival and of a finished slice, medians."""
    rng = Random(0)
    timers = [(rng.uniform(1e3, 1e5), -n) for n in range(num_waiting)]
    heapify(timers)
    waiting: list[Any] = sorted((rng.uniform(1e3, 1e5), -n, None) for n in range(1_000))
    survivors: list[Any] = []
    work, half = ExitWork((0.5,) * NUM_STAGES), max_batch // 2
    arrivals_us, finished_us = [], []
    for turn in range(num_turns):
        events = [UnitArrived(unit_id=n, work=work, deadline_s=rng.uniform(1e3, 1e5)) for n in range(half)]
        results = tuple(SliceResult(unit_id=n, report=rng.random()) for n in range(max_batch))
        started_ns = time.thread_time_ns()
        for number, event in enumerate(events, turn * half):
            unit = Unit(event, 0.0, number)
            insort(waiting, (unit.deadline_s, number, unit))
            heappush(timers, (unit.deadline_s, number))
        middle_ns = time.thread_time_ns()
        done, onward = [], []
        for result in results:
            (done if result.report >= 0.5 else onward).append(result.unit_id)
        decisions: list[Decision] = [Finish(unit_id=unit_id, stage=0) for unit_id in done[:half]]
        for unit_id in onward[:half]:
            insort(survivors, (float(unit_id), turn))
        if turn % 2:
            picked = survivors[:max_batch]
            del survivors[:max_batch]
        else:
            picked = [waiting.pop(0) for _ in range(max_batch)]
        decisions.append(RunSlice(slice_id=turn, stage=0, unit_ids=tuple([entry[1] for entry in picked])))
        finished_us.append((time.thread_time_ns() - middle_ns) / 1e3)
        arrivals_us.append((middle_ns - started_ns) / 1e3 / half)
    return {
        "max_batch": max_batch,
        "arrival_cpu_median_us": round(sorted(arrivals_us)[num_turns // 2], 2),
        "batch_finished_cpu_median_us": round(sorted(finished_us)[num_turns // 2], 2),
    }


def summary(name: str, times_us: list[tuple[float, float]]) -> dict[str, float | int]:
    wall_us, cpu_us = (sorted(column) for column in zip(*times_us, strict=True))
    return {
        f"{name}_calls": len(times_us),
        f"{name}_median_us": round(percentile(wall_us, 0.5) or math.nan, 2),
        f"{name}_p99_us": round(percentile(wall_us, 0.99) or math.nan, 2),
        f"{name}_cpu_median_us": round(percentile(cpu_us, 0.5) or math.nan, 2),
        f"{name}_cpu_p99_us": round(percentile(cpu_us, 0.99) or math.nan, 2),
    }


# -- policy ----------------------------------------------------------------------------------------------------------


def trace(rate_per_s: float, num_samples: int, deadline_s: float, seed: int) -> list[TraceUnit]:
    """Poisson arrivals whose samples leave at exits drawn from ``EXIT_SHARES``."""
    rng, now_s, samples = Random(seed), 0.0, []
    for _ in range(num_samples):
        now_s += rng.expovariate(rate_per_s)
        leaves_at = rng.choices(range(NUM_STAGES), EXIT_SHARES)[0]
        samples.append(
            exit_unit(
                arrived_s=now_s,
                deadline_s=now_s + deadline_s,
                thresholds=(0.5,) * NUM_STAGES,
                confidences=tuple(1.0 if stage >= leaves_at else 0.0 for stage in range(NUM_STAGES)),
            )
        )
    return samples


def capacity_per_s(cost: CostModel) -> float:
    """Samples per second if every batch of every stage were full: no policy can do more."""
    size, share, seconds = BATCH_SIZES[-1], 1.0, 0.0
    for stage, leaving in enumerate(EXIT_SHARES):
        seconds += share * cost.batch_s(stage, size) / size
        share -= leaving
    return 1.0 / seconds


def run_policy(name: str, shape: str, samples: list[TraceUnit]) -> Simulation:
    true_cost = cost_model(shape)
    return simulate(
        POLICIES[name](cost_model(shape)), samples, ExitWorld(true_cost.batch_s), noise=lognormal_noise(Random(1), 0.1)
    )


def policy_rows(num_samples: int, seeds: range) -> list[dict[str, Any]]:
    rows = []
    for shape in COST_SHAPES:
        capacity = capacity_per_s(cost_model(shape))
        for deadline_s in (0.05, 0.2):
            for load in (0.3, 0.6, 0.9, 1.0, 1.2, 2.0):
                traces = [trace(load * capacity, num_samples, deadline_s, seed) for seed in seeds]
                for name in POLICIES:
                    reports = [run_policy(name, shape, samples).report() for samples in traces]
                    rows.append(
                        {
                            "cost": shape,
                            "deadline_ms": round(deadline_s * 1e3),
                            "load": load,
                            "policy": name,
                            "good": _mean([r.good_share for r in reports]),
                            "degraded": _mean([r.degraded_share for r in reports]),
                            "rejected": _mean([r.rejected_share for r in reports]),
                            "mean_ms": _mean([1e3 * (r.mean_latency_s or 0.0) for r in reports]),
                            "p99_ms": _mean([1e3 * (r.p99_latency_s or 0.0) for r in reports]),
                        }
                    )
    return rows


def _mean(values: list[float]) -> float:
    return round(sum(values) / len(values), 4)


# -- shapes ----------------------------------------------------------------------------------------------------------


def shape_rows(num_units: int) -> list[dict[str, Any]]:
    """Goodput by load, in parts of the capacity, and the gap between tenants at three times the capacity."""
    rows = []
    for shape in SHAPES.values():
        scale = num_units if shape.capacity_per_s < 50 else 4 * num_units
        goodput = {load: shape.goodput_per_s(load, int(scale * load)) for load in SHAPE_LOADS}
        gap = shape.worst_gap(3.0, 3 * scale, WEIGHTS)
        rows.append(
            {
                "shape": shape.name,
                "capacity_per_s": round(shape.capacity_per_s, 2),
                "goodput_of_capacity": {str(load): round(g / shape.capacity_per_s, 3) for load, g in goodput.items()},
                "at_3x_of_peak": round(goodput[3.0] / max(goodput.values()), 3),
                "largest_gap_j": round(gap.largest, 5),
                "bound_j": round(gap.bound, 5),
            }
        )
    return rows


def print_shapes(rows: list[dict[str, Any]]) -> None:
    loads = " ".join(f"{load:>6}" for load in SHAPE_LOADS)
    print(
        f"\ngoodput in parts of the capacity, by load\n{'shape':<18} {loads} {'3x/peak':>8} {'gap J':>9} {'bound J':>9}"
    )
    for row in rows:
        cells = " ".join(f"{value:>6}" for value in row["goodput_of_capacity"].values())
        print(f"{row['shape']:<18} {cells} {row['at_3x_of_peak']:>8} {row['largest_gap_j']:>9} {row['bound_j']:>9}")


# -- output ----------------------------------------------------------------------------------------------------------


def print_costs(rows: list[dict[str, Any]]) -> None:
    columns = ("median_us", "p99_us", "cpu_median_us", "cpu_p99_us")
    print(f"{'microseconds':>15} | {'arrival':<35} | {'batch finished':<35}")
    heads = " ".join(f"{head:>8}" for head in ("median", "p99", "cpu med", "cpu p99"))
    print(f"{'waiting':>8} {'batch':>6} | {heads} | {heads}")
    for row in rows:
        cells = [
            " ".join(f"{row[f'{name}_{column}']:>8}" for column in columns) for name in ("arrival", "batch_finished")
        ]
        print(f"{row['num_waiting']:>8} {row['mean_batch']:>6} | {cells[0]} | {cells[1]}")


def print_policies(rows: list[dict[str, Any]]) -> None:
    print(f"\n{'cost':>7} {'ddl ms':>6} {'load':>5} | {'policy':<30}", end=" ")
    print(f"{'good':>6} {'degr':>6} {'rej':>6} {'mean':>7} {'p99 ms':>7}")
    for row in rows:
        print(
            f"{row['cost']:>7} {row['deadline_ms']:>6} {row['load']:>5} | {row['policy']:<30} {row['good']:>6.1%}"
            f" {row['degraded']:>6.1%} {row['rejected']:>6.1%} {row['mean_ms']:>7.1f} {row['p99_ms']:>7.1f}"
        )


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--waiting", type=int, nargs="+", default=[10, 100, 1_000, 10_000, 100_000])
    parser.add_argument("--turns", type=int, default=2_000, help="batches timed per row")
    parser.add_argument("--samples", type=int, default=4_000, help="samples per simulated trace")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="do these parts, keep the others")
    parser.add_argument("--seeds", type=int, default=3, help="traces per simulated row")
    args = parser.parse_args()
    if args.quick:
        args.waiting, args.turns, args.samples, args.seeds = [10, 100], 50, 200, 1
    folder, origin = out_dir(args), provenance("scheduler")
    path = folder / "scheduler.json"
    document = json.loads(path.read_text()) if path.exists() else {}
    if "costs" in args.only:
        costs = [decision_cost(n, batch, args.turns) for batch in (16, 32) for n in args.waiting]
        floors = [floor_us(10_000, batch, args.turns) for batch in (16, 32)]
        document["decision_cost"] = {**origin, "rows": costs, "floor_at_10000": floors}
        print_costs(costs)
        print(f"floor at 10,000 waiting: {floors}")
    if "policies" in args.only:
        policies = policy_rows(args.samples, range(args.seeds))
        document["policies"] = {**origin, "rows": policies}
        print_policies(policies)
    if "shapes" in args.only:
        shapes = shape_rows(args.samples // 4)
        document["shapes"] = {**origin, "rows": shapes}
        print_shapes(shapes)
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({name: document[name] for name in DOCUMENT if name in document}, indent=1) + "\n")


if __name__ == "__main__":
    main()
