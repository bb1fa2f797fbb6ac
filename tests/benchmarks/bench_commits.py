"""Whether a change made the system faster or slower: two commits, in one run, by turns.

    python -m tests.benchmarks.bench_commits --before COMMIT   # writes docs/benchmarks/commits.{json,md}

Both sides are ``vireo up`` with the models that it serves by default and the result cache off; the side "after" is the
working tree, the side "before" a commit, checked out into a temporary folder and run in this environment. Both are up
the whole time, and the one that is not measured is stopped (SIGSTOP). Sides take turns, the order turns from round to
round, and ratios are taken per round. Requests are those of bench_gateway (one picture of a digit each, all different)
and of bench_chat (a fresh picture and a question each, streamed); closed loop.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks import bench_chat, bench_gateway
from tests.benchmarks.common import (
    ROOT,
    checked_out,
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
HEADER = ("requests, clients", "figure", "before", "after", "after / before (min, median, max)")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of request and the figure that counts for it; ``measure(system, round)`` gives a row."""

    name: str
    figure: str
    measure: Callable[[System, int], Row]


def kinds_of(args: argparse.Namespace) -> list[Kind]:
    """In the order of the table."""
    duration_s, requests = (2.0, 48) if args.quick else (5.0, 240)
    gateway = bench_gateway.Plan(
        rounds=1, duration_s=duration_s, warm_up_s=1.0, clients=(args.clients,), surfaces=("http", "grpc")
    )
    chat = bench_chat.Plan(
        rounds=1, requests={args.clients: requests}, workloads=("fresh",), max_tokens=64, size="448x448"
    )

    def classify(surface: str) -> Callable[[System, int], Row]:
        return lambda system, number: bench_gateway.measure(system, surface, args.clients, gateway, number)

    kinds = [
        Kind(name="classify over HTTP", figure="requests_per_s", measure=classify("http")),
        Kind(name="classify over gRPC", figure="requests_per_s", measure=classify("grpc")),
        Kind(
            name="chat, fresh pictures",
            figure="tokens_per_s",
            measure=lambda system, number: bench_chat.measure(system, "fresh", args.clients, chat, number),
        ),
    ]
    return [kind for kind in kinds if not args.only or any(word in kind.name for word in args.only)]


def make_side(name: str, tree: Path, run_dir: Path) -> System:
    """One side, not yet started."""
    http, grpc = free_ports(2)
    settings = ("log_level=warning", "redis.cache=false", "gateway.default_deadline_s=300", f"run_dir={run_dir}")
    command = ["serving.cli", "up", "--no-check", "--port", str(http), "--grpc-port", str(grpc)]
    return System(
        name=name,
        title=name,
        commands=[[*command, *(word for setting in settings for word in ("--set", setting))]],
        ports={"http": http, "grpc": grpc},
        env={},
        run_dir=run_dir,
        readiness_path="/v2/health/ready",
        tree=tree,
    )


def summarise(kind: Kind, clients: int, rows: Sequence[Row]) -> Row:
    """Medians of both sides, and the ratio of each round. Raises: RuntimeError: a request failed."""
    for row in rows:
        if set(row["outcomes"]) != {"ok"}:
            raise RuntimeError(f"{kind.name}, {row['side']}: {row['outcomes']}")
    by_side = {side: {r["round"]: r[kind.figure] for r in rows if r["side"] == side} for side in ("before", "after")}
    ratios = [by_side["after"][number] / value for number, value in by_side["before"].items()]
    return {
        "kind": f"{kind.name}, {clients}",
        "figure": kind.figure,
        **{side: round(median(values.values()), 1) for side, values in by_side.items()},
        "ratio": [round(value, 3) for value in (min(ratios), median(ratios), max(ratios))],
    }


def main() -> None:
    """Run, print, write."""
    parser = parser_of(__doc__)
    parser.add_argument("--before", required=True, help="commit to compare with")
    parser.add_argument("--rounds", type=int, help="default 5, or 1 with --quick")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--only", nargs="+", help="kinds whose name holds one of these words: HTTP, gRPC, chat")
    args = parser.parse_args()
    origin, kinds = provenance("commits"), kinds_of(args)
    rounds = args.rounds or (1 if args.quick else 5)
    rows: dict[str, list[Row]] = {kind.name: [] for kind in kinds}
    with (
        tempfile.TemporaryDirectory(prefix="vb-", ignore_cleanup_errors=True) as folder,
        checked_out(args.before) as tree,
    ):
        sides = [make_side("before", tree, Path(folder) / "b"), make_side("after", ROOT, Path(folder) / "a")]
        with running(sides):
            for number in range(rounds):
                for kind in kinds:
                    for side in sides if number % 2 == 0 else sides[::-1]:
                        rows[kind.name].append(kind.measure(side, number))
    for row in (row for measured in rows.values() for row in measured):
        row.pop("texts", None)
    summary = [summarise(kind, args.clients, rows[kind.name]) for kind in kinds]
    cells = [
        [row["kind"], row["figure"], row["before"], row["after"], ", ".join(f"{r:.2f}" for r in row["ratio"])]
        for row in summary
    ]
    print_table(HEADER, cells)
    document = {**origin, "before": args.before, "summary": summary, "measurements": rows}
    text = f"{rounds} round(s); before: {args.before}.\n\n{markdown_table(HEADER, cells)}"
    write_results(out_dir(args), document, text)


if __name__ == "__main__":
    main()
