"""How many requests a deadline lets one replica answer: full network, early exit, early exit with re-batching (ours).

    python -m tests.benchmarks.bench_early_exit       # prints the tables, writes docs/benchmarks/early-exit.{json,md}

In process and without HTTP: this measures engine, driver and scheduler. Every side is a ``Driver``
around an ``RowEngine`` with the same weights, torch threads, deadline and pictures (held-out mixed set: half
clean, half hard), and runs on uvloop, as in a classifier replica. Requests come open loop, as a seeded Poisson process;
their latency counts from the moment they were due. The generator shares the event loop with the driver, so its
own work counts against every side, most against the fastest.

Good means: answered within the deadline at the exit that the sample's own thresholds chose. The result of a side is its
goodput at the highest rate at which 99% of all requests are good (p99 within the deadline): a grid of rates, then a
staircase from the best of them. A rate that fails is tried once more with other arrivals, on every side alike. Within a
round the sides take turns at each rate, in rotating order; ratios are taken per round, and their median is reported.

"Virtual clock" is the same search in the simulator, with the stage costs measured in this run and nothing else: what
the policies alone can do. Each side runs at the batch limit that serves it best there.

Operating point of both early-exit sides: the cheapest whose accuracy on the calibration split is within 0.5 points of
the full network's; accuracy is then measured here, on the test split. Joules are an estimate: busy seconds times an
assumed power of one core.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

import torch
import uvloop

from serving.system.process import freeze_start_up
from tests.benchmarks.common import markdown_table, out_dir, parser_of, print_table, provenance, write_results
from tests.benchmarks.early_exit_load import is_sustained, measure
from tests.benchmarks.early_exit_sides import Side, Workload, load_workload, make_sides
from tests.benchmarks.early_exit_simulation import capacity_per_s, confidences

GRID = (0.5, 0.8, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)
QUICK_GRID = (0.5, 1.0, 2.0)
SIDES = ("full", "no-rebatching", "ours")
SECOND_TRY = 500_000
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and how often."""

    grid: tuple[float, ...]
    rounds: int
    duration_s: float
    steps: int
    simulated_s: float
    batch_limits: tuple[int, ...]
    stage_repeats: int
    deadlines_s: tuple[float, ...]


def plan_of(args: argparse.Namespace) -> Plan:
    quick: bool = args.quick
    return Plan(
        grid=QUICK_GRID if quick else GRID,
        rounds=args.rounds or (1 if quick else 5),
        duration_s=args.duration_s or (0.6 if quick else 3.0),
        steps=3 if quick else 10,
        simulated_s=0.5 if quick else 3.0,
        batch_limits=tuple(args.max_batch) if args.max_batch else ((32,) if quick else (32, 64, 128)),
        stage_repeats=3 if quick else 20,
        deadlines_s=tuple(ms / 1e3 for ms in args.deadline_ms),
    )


# -- one measurement ---------------------------------------------------------------------------------------------------


class Bench:
    """Runs single measurements at one deadline and keeps every row."""

    def __init__(self, work: Workload, plan: Plan, deadline_s: float) -> None:
        self.work, self.plan, self.deadline_s = work, plan, deadline_s
        self.rows: list[Row] = []

    def run(self, side: Side, rate_per_s: float, seed: int, **extra: Any) -> Row:
        """One measurement; a rate that fails is tried once more, because a hiccup of the machine must not decide."""
        row = self._run_once(side, rate_per_s, seed, **extra)
        return row if is_sustained(row) else self._run_once(side, rate_per_s, seed + SECOND_TRY, **extra)

    def _run_once(self, side: Side, rate_per_s: float, seed: int, **extra: Any) -> Row:
        row = uvloop.run(measure(self.work, side, rate_per_s, self.plan.duration_s, self.deadline_s, seed))
        row |= {"deadline_ms": 1e3 * self.deadline_s, **extra}
        self.rows.append(row)
        progress(
            f"{side.name:<14} batch<={side.max_batch:<4} {rate_per_s:8.0f}/s  good {row['good_share']:7.2%}"
            f"  p99 {row['p99_ms']} ms  busy {row['engine_busy_share']:4.0%}  batches {row['mean_batch']}"
        )
        return row


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# -- search ------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Staircase:
    """Up after a success, down after a failure, by a factor that shrinks whenever the direction changes.

    Unlike bisection it never rules a rate out for good, so that one bad second costs steps and not the result.
    """

    rate: float
    factor: float = 1.5
    best: Row | None = None
    _went_up: bool | None = None

    def take(self, row: Row) -> None:
        good = is_sustained(row)
        if good and (self.best is None or row["rate_per_s"] > self.best["rate_per_s"]):
            self.best = row
        if self._went_up is not None and self._went_up != good:
            self.factor = max(1.04, math.sqrt(self.factor))
        self._went_up = good
        self.rate = self.rate * self.factor if good else self.rate / self.factor


def simulated(work: Workload, plan: Plan, deadline_s: float) -> dict[str, dict[int, float]]:
    """Requests per second of each side at each batch limit, on the virtual clock."""
    at_exits = confidences(work)
    found: dict[str, dict[int, float]] = {name: {} for name in SIDES}
    for limit in plan.batch_limits:
        for side in make_sides(work, dict.fromkeys(SIDES, limit)):
            found[side.name][limit] = round(capacity_per_s(work, side, at_exits, deadline_s, plan.simulated_s), 1)
    progress(f"virtual clock: {found}")
    return found


def one_round(bench: Bench, sides: Sequence[Side], capacity: float, number: int) -> dict[str, Row | None]:
    """The grid, then a staircase from the best rate on it; at each step the sides take turns."""
    best: dict[str, Row] = {}
    for step, multiple in enumerate(bench.plan.grid):
        for side in rotated(sides, number + step):
            seed = 1_000 * number + step
            row = bench.run(side, multiple * capacity, seed, phase="grid", round=number, multiple=multiple)
            if is_sustained(row):
                best[side.name] = row
    stairs = {name: Staircase(rate=0.5 * capacity if name not in best else 0.0) for name in SIDES}
    for name, row in best.items():
        stairs[name].rate = row["rate_per_s"]
        stairs[name].take(row)
    for step in range(bench.plan.steps):
        for side in rotated(sides, number + step):
            seed = 1_000 * number + 100 + step
            stairs[side.name].take(bench.run(side, stairs[side.name].rate, seed, phase="staircase", round=number))
    return {name: stair.best for name, stair in stairs.items()}


def rotated(sides: Sequence[Side], by: int) -> Iterator[Side]:
    for offset in range(len(sides)):
        yield sides[(by + offset) % len(sides)]


# -- report ------------------------------------------------------------------------------------------------------------


def ratio(rounds: Sequence[dict[str, Row | None]], name: str, base: str) -> float | None:
    """Median over the rounds of goodput over goodput."""
    pairs = [(one[name], one[base]) for one in rounds]
    ratios = [a["goodput_per_s"] / b["goodput_per_s"] for a, b in pairs if a and b]
    return round(median(ratios), 2) if ratios else None


def summarise(side: Side, rounds: Sequence[dict[str, Row | None]], virtual_per_s: float) -> Row:
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
        "virtual_per_s": virtual_per_s,
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
    "side", "batch limit", "virtual clock/s", "goodput/s", "x full", "x no re-batching", "p50 ms", "p99 ms", "accuracy",
    "mJ/answer", "mean batch per stage", "share per exit", "lag p99 ms", "engine busy", "loop us/request",
)  # fmt: skip


def result_cells(row: Row) -> list[object]:
    accuracy = None if row["accuracy"] is None else f"{row['accuracy']:.2%}"
    return [
        row["title"], row["max_batch"], row["virtual_per_s"], row["goodput_per_s"], row["to_full"],
        row["to_no_rebatching"], row["p50_ms"], row["p99_ms"], accuracy, row["millijoules_per_answer"],
        spaced(row["mean_batch"]), spaced(row["exit_shares"]), row["lag_p99_ms"], row["engine_busy_share"],
        row["loop_us_per_request"],
    ]  # fmt: skip


def spaced(values: Sequence[object]) -> str:
    return " / ".join("-" if value is None else str(value) for value in values)


def curve(grid: Sequence[float], rows: Sequence[Row], sides: Sequence[Side]) -> list[list[object]]:
    """Median share of good requests by offered rate; first tries only."""
    table: list[list[object]] = []
    for multiple in grid:
        at = [row for row in rows if row.get("multiple") == multiple and row["seed"] < SECOND_TRY]
        shares = [[row["good_share"] for row in at if row["side"] == side.name] for side in sides]
        table.append(
            [f"{multiple:g}x", round(at[0]["rate_per_s"]), *[f"{median(s):.1%}" if s else None for s in shares]]
        )
    return table


def virtual_table(plan: Plan, virtual: dict[str, dict[int, float]]) -> tuple[tuple[str, ...], list[list[object]]]:
    """By batch limit: each side on the virtual clock, and ours to the other two."""
    rows: list[list[object]] = []
    for size in plan.batch_limits:
        full, fifo, ours = (virtual[name][size] for name in SIDES)
        to_full, to_fifo = (round(ours / other, 2) if other else None for other in (full, fifo))
        rows.append([size, round(full), round(fifo), round(ours), to_full, to_fifo])
    header = ("batch limit", "full network", "no re-batching", "ours", "ours x full", "ours x no re-batching")
    return header, rows


def sentences(work: Workload, plan: Plan, bound: Row, deadline_s: float, summary: Sequence[Row]) -> str:
    full, fifo, ours = summary

    def percent(row: Row, of: float) -> str:
        return f"{100 * row['goodput_per_s'] / of:.0f}%" if row["goodput_per_s"] and of else "-"

    limit_full, limit_early = bound["full"], bound["early"]
    return (
        f"{work.variant.id}, operating point `{work.early.name}`, {torch.get_num_threads()} torch thread(s), deadline "
        f"{1e3 * deadline_s:g} ms for 99% of requests, {plan.rounds} round(s), {plan.duration_s:g} s per rate. Limits "
        f"from the stage table: full network {limit_full['per_s']}/s at batch {limit_full['best_batch']}, early exit "
        f"with perfect re-batching {limit_early['per_s']}/s at batch {limit_early['best_batch']}, ratio "
        f"{bound['ratio']}. Reached of these: full {percent(full, limit_full['per_s'])}, ours "
        f"{percent(ours, limit_early['per_s'])}. Reached of the virtual clock: full "
        f"{percent(full, full['virtual_per_s'])}, no re-batching {percent(fifo, fifo['virtual_per_s'])}, ours "
        f"{percent(ours, ours['virtual_per_s'])}. Of the time, ours has the engine busy for "
        f"{ours['engine_busy_share']} and batches on their way between event loop and engine for "
        f"{ours['hand_over_share']}."
    )


def at_deadline(work: Workload, plan: Plan, bound: Row, deadline_s: float) -> tuple[Row, str]:
    """Search, measure, print; the figures and the same as markdown."""
    capacity = float(bound["full"]["per_s"])
    bench, virtual = Bench(work, plan, deadline_s), simulated(work, plan, deadline_s)
    limit = {name: max((rate, size) for size, rate in rates.items())[1] for name, rates in virtual.items()}
    sides = make_sides(work, limit)
    rounds = [one_round(bench, sides, capacity, number) for number in range(plan.rounds)]
    summary = [summarise(side, rounds, virtual[side.name][side.max_batch]) for side in sides]
    cells = [result_cells(row) for row in summary]
    curve_header = ("offered", "requests/s", *[side.title for side in sides])
    curve_rows = curve(plan.grid, bench.rows, sides)
    text = sentences(work, plan, bound, deadline_s, summary)
    print(f"\ndeadline {1e3 * deadline_s:g} ms")
    print_table(RESULT_HEADER, cells)
    print()
    print_table(curve_header, curve_rows)
    print(f"\n{text}")
    about_curve = "Share of good requests by offered rate, in multiples of the full network's limit:"
    virtual_header, virtual_rows = virtual_table(plan, virtual)
    print()
    print_table(virtual_header, virtual_rows)
    tables = [
        markdown_table(RESULT_HEADER, cells),
        text,
        about_curve,
        markdown_table(curve_header, curve_rows),
        "What the policies alone could do, on the virtual clock, by batch limit (requests/s):",
        markdown_table(virtual_header, virtual_rows),
    ]
    figures = {
        "deadline_ms": 1e3 * deadline_s,
        "virtual_clock_per_s": virtual,
        "summary": summary,
        "measurements": bench.rows,
    }
    return figures, "\n\n".join(tables)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--model", default="dyn-perceiver-nano")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--random-weights", action="store_true", help="full-size model; exits drawn (50/25/15/10%%)")
    parser.add_argument("--deadline-ms", type=float, nargs="+", default=[50.0], help="one or several; default 50")
    parser.add_argument("--rounds", type=int, help="default 5")
    parser.add_argument("--duration-s", type=float, help="seconds of load per measurement; default 3")
    parser.add_argument("--max-batch", type=int, nargs="+", help="batch limits to choose from; default 32 64 128")
    parser.add_argument("--operating-point", help="of the early-exit sides; default: chosen by the rule above")
    parser.add_argument(
        "--engine", choices=("process", "thread"), default="process", help="where it runs; replicas have a process"
    )
    parser.add_argument("--threads", type=int, default=1, help="torch threads of each side")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    plan, origin = plan_of(args), provenance("early-exit")
    sizes = [size for size in (1, 2, 4, 8, 16, 32, 64, 128, 256) if size <= max(plan.batch_limits)]
    work = load_workload(
        args.model,
        args.device,
        sizes,
        plan.stage_repeats,
        random_weights=args.random_weights,
        operating_point=args.operating_point,
        in_process=args.engine == "thread",
    )
    freeze_start_up()  # as a replica does
    bound = limits(work)
    progress(f"limits: {bound}")
    results = [at_deadline(work, plan, bound, deadline_s) for deadline_s in plan.deadlines_s]
    document = {
        **origin,
        "model": work.variant.id,
        "operating_point": {"full": work.full.name, "early": work.early.name, "shares": work.early.shares},
        "engine": args.engine,
        "torch_threads": torch.get_num_threads(),
        "device": args.device,
        "limits": bound,
        "stage_ms": {"batch_sizes": work.batch_sizes, "stages": [[1e3 * s for s in row] for row in work.stage_seconds]},
        "deadlines": [figures for figures, _ in results],
    }
    write_results(out_dir(args), document, "\n\n".join(tables for _, tables in results))


if __name__ == "__main__":
    main()
