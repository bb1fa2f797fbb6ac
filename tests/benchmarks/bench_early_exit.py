"""How many requests a deadline lets one replica answer: full network, early exit, early exit with re-batching (ours).

    python -m tests.benchmarks.bench_early_exit       # prints the tables, writes docs/benchmarks/early-exit.{json,md}

In process and without HTTP: this measures engine, driver and scheduler. Every side is a ``serving.driver.Driver``
around an ``EarlyExitEngine`` with the same weights, torch threads, deadline and pictures (held-out mixed set: half
clean, half hard), and runs on uvloop, as in a classifier replica. Requests come open loop, as a seeded Poisson process;
their latency counts from the moment they were due. The generator shares the event loop with the driver, so its own
work (about a third of the loop's) counts against every side, most against the fastest.

Good means: answered within the deadline at the exit that the sample's own thresholds chose. The result of a side is its
goodput at the highest rate at which 99% of all requests are good (p99 within the deadline), on a grid of rates and then
by bisection. A rate that fails is tried once more with other arrivals, on every side alike. Within a round the sides
take turns at each rate, in rotating order; ratios are taken per round, and their median is reported.

Operating point of both early-exit sides: the cheapest whose accuracy on the calibration split is within 0.5 points of
the full network's; accuracy is then measured here, on the test split. Each side runs at the batch limit that served it
best in a search beforehand. Joules are an estimate: busy seconds times an assumed power of one core.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

import torch
import uvloop

from serving.pauses import freeze_start_up
from tests.benchmarks.common import add_output_options, markdown_table, out_dir, print_table, provenance, write_results
from tests.benchmarks.early_exit_load import is_sustained, measure
from tests.benchmarks.early_exit_sides import Side, Workload, load_workload, make_sides

GRID = (0.5, 0.8, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)
QUICK_GRID = (0.5, 1.0, 2.0)
SIDES = ("full", "no-rebatching", "ours")
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and how often."""

    grid: tuple[float, ...]
    rounds: int
    duration_s: float
    search_s: float
    bisections: int
    batch_limits: tuple[int, ...]
    stage_repeats: int
    deadline_s: float


def plan_of(args: argparse.Namespace) -> Plan:
    quick: bool = args.quick
    return Plan(
        grid=QUICK_GRID if quick else GRID,
        rounds=args.rounds or (1 if quick else 5),
        duration_s=args.duration_s or (0.6 if quick else 3.0),
        search_s=0.4 if quick else 2.0,
        bisections=1 if quick else 4,
        batch_limits=tuple(args.max_batch) if args.max_batch else ((32,) if quick else (32, 64, 128)),
        stage_repeats=3 if quick else 20,
        deadline_s=args.deadline_ms / 1e3,
    )


# -- one measurement ---------------------------------------------------------------------------------------------------


class Bench:
    """Runs single measurements, numbers their seeds and keeps every row."""

    def __init__(self, work: Workload, plan: Plan) -> None:
        self.work, self.plan = work, plan
        self.rows: list[Row] = []

    def run(self, side: Side, rate_per_s: float, seed: int, duration_s: float | None = None, **extra: Any) -> Row:
        seconds = duration_s or self.plan.duration_s
        row = uvloop.run(measure(self.work, side, rate_per_s, seconds, self.plan.deadline_s, seed))
        row |= extra
        self.rows.append(row)
        progress(
            f"{side.name:<14} batch<={side.max_batch:<4} {rate_per_s:8.0f}/s  good {row['good_share']:7.2%}"
            f"  p99 {row['p99_ms']} ms  busy {row['engine_busy_share']:4.0%}  batches {row['mean_batch']}"
        )
        return row

    def try_twice(self, side: Side, rate_per_s: float, seed: int, duration_s: float | None = None, **extra: Any) -> Row:
        """A hiccup of the machine must not decide: a rate that fails is offered once more."""
        row = self.run(side, rate_per_s, seed, duration_s, **extra)
        return row if is_sustained(row) else self.run(side, rate_per_s, seed + 500_000, duration_s, **extra)


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# -- search ------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Bracket:
    """The best rate sustained so far, and the lowest rate above it that was not."""

    best: Row | None = None
    low: float = 0.0
    high: float = float("inf")

    def take(self, row: Row) -> None:
        rate = row["rate_per_s"]
        if is_sustained(row) and rate > self.low:
            self.best, self.low = row, rate
            self.high = self.high if self.high > rate else float("inf")
        elif not is_sustained(row) and self.low < rate < self.high:
            self.high = rate

    @property
    def middle(self) -> float:
        return (self.low + self.high) / 2 if self.high < float("inf") else 1.5 * self.low


def batch_limits(bench: Bench, capacity: float) -> dict[str, int]:
    """The batch limit at which each side sustains most."""
    plan = bench.plan
    if len(plan.batch_limits) == 1:
        return dict.fromkeys(SIDES, plan.batch_limits[0])
    best: dict[str, tuple[float, int]] = {}
    for limit in plan.batch_limits:
        for side in make_sides(bench.work, dict.fromkeys(SIDES, limit)):
            bracket = Bracket(high=3.0 * capacity)
            for step in range(6):
                bracket.take(bench.try_twice(side, bracket.middle, 900_000 + step, plan.search_s, phase="batch limit"))
            best[side.name] = max(best.get(side.name, (0.0, limit)), (bracket.low, limit))
    return {name: limit for name, (_, limit) in best.items()}


def one_round(bench: Bench, sides: Sequence[Side], capacity: float, number: int) -> dict[str, Row | None]:
    """The grid, then bisection; at each step the sides take turns."""
    brackets = {side.name: Bracket() for side in sides}
    for step, multiple in enumerate(bench.plan.grid):
        for side in rotated(sides, number + step):
            seed = 1_000 * number + step
            brackets[side.name].take(
                bench.try_twice(side, multiple * capacity, seed, phase="grid", round=number, multiple=multiple)
            )
    for step in range(bench.plan.bisections):
        for side in rotated(sides, number + step):
            bracket = brackets[side.name]
            seed = 1_000 * number + 100 + step
            bracket.take(bench.try_twice(side, bracket.middle, seed, phase="bisection", round=number))
    return {name: bracket.best for name, bracket in brackets.items()}


def rotated(sides: Sequence[Side], by: int) -> Iterator[Side]:
    for offset in range(len(sides)):
        yield sides[(by + offset) % len(sides)]


# -- report ------------------------------------------------------------------------------------------------------------


def ratio(rounds: Sequence[dict[str, Row | None]], name: str, base: str) -> float | None:
    """Median over the rounds of goodput over goodput."""
    pairs = [(one[name], one[base]) for one in rounds]
    ratios = [a["goodput_per_s"] / b["goodput_per_s"] for a, b in pairs if a and b]
    return round(median(ratios), 2) if ratios else None


def summarise(side: Side, rounds: Sequence[dict[str, Row | None]]) -> Row:
    """Medians over the rounds, each at that round's highest sustained rate; accuracy is pooled."""
    rows = [row for one in rounds if (row := one[side.name])]

    def middle(key: Callable[[Row], float | None], digits: int = 2) -> float | None:
        values = [value for row in rows if (value := key(row)) is not None]
        return round(float(median(values)), digits) if values else None

    def mean_batch(stage: int) -> float | None:
        return middle(lambda row: row["mean_batch"][stage], 1)

    answers = sum(row["num_requests"] for row in rows)
    right = [row["accuracy"] * row["num_requests"] for row in rows if row["accuracy"] is not None]
    stages = range(len(side.point.thresholds))
    return {
        "side": side.name,
        "title": side.title,
        "max_batch": side.max_batch,
        "rounds_sustained": len(rows),
        "goodput_per_s": middle(lambda row: row["goodput_per_s"], 0),
        "to_full": ratio(rounds, side.name, "full"),
        "to_no_rebatching": ratio(rounds, side.name, "no-rebatching"),
        "p50_ms": middle(lambda row: row["p50_ms"]),
        "p99_ms": middle(lambda row: row["p99_ms"]),
        "accuracy": round(sum(right) / answers, 4) if right else None,
        "millijoules_per_answer": middle(lambda row: 1e3 * row["joules_per_answer"], 3),
        "mean_batch": [mean_batch(stage) for stage in stages],
        "exit_shares": [round(mean(row["exit_shares"][s] for row in rows), 3) if rows else None for s in stages],
        "lag_p99_ms": middle(lambda row: row["lag_p99_ms"]),
        "engine_busy_share": middle(lambda row: row["engine_busy_share"]),
        "hand_over_share": middle(lambda row: row["hand_over_share"], 3),
        "loop_us_per_request": middle(lambda row: row["cpu_us_per_request"]["loop_thread_s"], 1),
        "process_us_per_request": middle(lambda row: row["cpu_us_per_request"]["process_s"], 1),
    }


def limits(work: Workload) -> Row:
    """Requests per second that the engine alone could answer, at the batch size that is best for each."""
    rows: Row = {}
    for name, point in (("full", work.full), ("early", work.early)):
        rates = {size: 1.0 / work.seconds_per_sample(point, size) for size in work.batch_sizes}
        best = max(rates, key=lambda size: rates[size])
        rows[name] = {"best_batch": best, "per_s": round(rates[best]), "us_per_sample": round(1e6 / rates[best], 1)}
    rows["ratio"] = round(rows["early"]["per_s"] / rows["full"]["per_s"], 2)
    return rows


RESULT_HEADER = (
    "side", "batch limit", "goodput/s", "x full", "x no re-batching", "p50 ms", "p99 ms", "accuracy", "mJ/answer",
    "mean batch per stage", "share per exit", "lag p99 ms", "engine busy", "loop us/request",
)  # fmt: skip


def result_cells(row: Row) -> list[object]:
    accuracy = None if row["accuracy"] is None else f"{row['accuracy']:.2%}"
    return [
        row["title"], row["max_batch"], row["goodput_per_s"], row["to_full"], row["to_no_rebatching"], row["p50_ms"],
        row["p99_ms"], accuracy, row["millijoules_per_answer"], spaced(row["mean_batch"]), spaced(row["exit_shares"]),
        row["lag_p99_ms"], row["engine_busy_share"], row["loop_us_per_request"],
    ]  # fmt: skip


def spaced(values: Sequence[object]) -> str:
    return " / ".join("-" if value is None else str(value) for value in values)


def curve(grid: Sequence[float], rows: Sequence[Row], sides: Sequence[Side]) -> list[list[object]]:
    """Median share of good requests by offered rate; first tries only."""
    table: list[list[object]] = []
    for multiple in grid:
        at = [row for row in rows if row.get("multiple") == multiple and row["seed"] < 500_000]
        shares = [[row["good_share"] for row in at if row["side"] == side.name] for side in sides]
        table.append(
            [f"{multiple:g}x", round(at[0]["rate_per_s"]), *[f"{median(s):.1%}" if s else None for s in shares]]
        )
    return table


def sentences(work: Workload, plan: Plan, bound: Row, summary: Sequence[Row]) -> str:
    ours, full = summary[2], summary[0]
    reached = ours["goodput_per_s"] and round(100 * ours["goodput_per_s"] / bound["early"]["per_s"])
    reached_full = full["goodput_per_s"] and round(100 * full["goodput_per_s"] / bound["full"]["per_s"])
    return (
        f"{work.spec.id}, operating point `{work.early.name}`, {torch.get_num_threads()} torch thread(s), deadline "
        f"{1e3 * plan.deadline_s:g} ms at 99% of requests, {plan.rounds} round(s), {plan.duration_s:g} s per rate.\n\n"
        f"Limit from the stage table measured in this run: full network {bound['full']['per_s']}/s at batch "
        f"{bound['full']['best_batch']}; early exit with perfect re-batching {bound['early']['per_s']}/s at batch "
        f"{bound['early']['best_batch']}; ratio {bound['ratio']}. Ours reaches {reached}% of its limit, the full "
        f"network {reached_full}% of its own. Of the time, ours has the engine busy for {ours['engine_busy_share']} "
        f"and batches on their way between event loop and engine thread for {ours['hand_over_share']}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_output_options(parser)
    parser.add_argument("--model", default="dyn-perceiver-nano")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--random-weights", action="store_true", help="full-size model; exits drawn (50/25/15/10%%)")
    parser.add_argument("--deadline-ms", type=float, default=100.0)
    parser.add_argument("--rounds", type=int, help="default 5")
    parser.add_argument("--duration-s", type=float, help="seconds of load per measurement; default 3")
    parser.add_argument("--max-batch", type=int, nargs="+", help="batch limits to choose from; default 32 64 128")
    parser.add_argument("--threads", type=int, default=1, help="torch threads of each side")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    plan = plan_of(args)
    origin = provenance("early-exit")
    sizes = [size for size in (1, 2, 4, 8, 16, 32, 64, 128, 256) if size <= max(plan.batch_limits)]
    work = load_workload(args.model, args.device, args.random_weights, sizes, plan.stage_repeats)
    bench, bound = Bench(work, plan), limits(work)
    freeze_start_up()  # as a replica does
    capacity = float(bound["full"]["per_s"])
    progress(f"limits: {bound}")
    sides = make_sides(work, batch_limits(bench, capacity))
    rounds = [one_round(bench, sides, capacity, number) for number in range(plan.rounds)]
    summary = [summarise(side, rounds) for side in sides]
    curve_header = ("offered", "requests/s", *[side.title for side in sides])
    curve_rows = curve(plan.grid, bench.rows, sides)
    print_table(RESULT_HEADER, [result_cells(row) for row in summary])
    print()
    print_table(curve_header, curve_rows)
    text = sentences(work, plan, bound, summary)
    print(f"\n{text}")
    document = {
        **origin,
        "model": work.spec.id,
        "operating_point": {"full": work.full.name, "early": work.early.name, "shares": work.early.shares},
        "deadline_ms": args.deadline_ms,
        "torch_threads": torch.get_num_threads(),
        "device": args.device,
        "limits": bound,
        "stage_ms": {"batch_sizes": work.batch_sizes, "stages": [[1e3 * s for s in row] for row in work.stage_seconds]},
        "summary": summary,
        "measurements": bench.rows,
    }
    tables = [markdown_table(RESULT_HEADER, [result_cells(row) for row in summary])]
    tables += ["Share of good requests by offered rate, in multiples of the full network's limit:"]
    tables += [markdown_table(curve_header, curve_rows), text]
    write_results(out_dir(args), document, "\n\n".join(tables))


if __name__ == "__main__":
    main()
