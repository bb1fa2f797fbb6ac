"""What a second rank buys one denoising step, and what four and eight GPUs would.

    python -m tests.benchmarks.bench_sequence_parallel   # prints tables, writes docs/benchmarks/sequence-parallel.*

Every rank is a process with one thread, kept warm; sides take turns within each round. "two for themselves" is two
processes that each run the whole step at once and exchange nothing: the most that two cores of this machine can give,
since they share caches, memory and, here, other work ("x" of two for themselves below 2 is that other work). "x by CPU"
compares processor seconds of one rank with those of the busiest of two: what "x" would be on two cores that do nothing
else, but for the wait for the wire. Bytes are counted where they are sent. The projection takes the
bytes of one attention call, counted in bfloat16 at full size on groups of 2, 4 and 8 ranks, times layers and branches;
its bandwidths and the seconds of one GPU are assumptions, stated beside it.
"""

from __future__ import annotations

import argparse
import os
import statistics
from typing import Any

from models.parallel.degrees import ParallelDegrees
from models.parallel.rank_pool import RankPool
from tests.benchmarks import sequence_parallel_sides as sides
from tests.benchmarks.common import (
    markdown_table,
    out_dir,
    parser_of,
    print_table,
    provenance,
    write_results,
)
from tests.benchmarks.sequence_parallel_projection import ASSUMPTIONS, COUNTED_SHAPE, PLANS, project

_SIDES: dict[str, tuple[int, ParallelDegrees | None]] = {
    "1 rank": (1, None),
    "2 ranks, ulysses": (2, ParallelDegrees(ulysses=2)),
    "2 ranks, ring": (2, ParallelDegrees(ring=2)),
    "two for themselves": (2, None),
}
_KINDS = ("dense", "tile 2:6")


def measure(shape: sides.Shape, rounds: int) -> tuple[list[dict[str, Any]], float]:
    """A row for each kind and side; and seconds that the exchanges of a step take by themselves."""
    with RankPool(1, timeout_s=600) as one, RankPool(2, timeout_s=600) as two:
        pools = {1: one, 2: two}
        taken: dict[tuple[str, str], list[list[dict[str, Any]]]] = {
            (kind, side): [] for kind in _KINDS for side in _SIDES
        }
        exchanges = []
        for turn in range(rounds + 1):
            for kind, side in taken:
                size, degrees = _SIDES[side]
                results = pools[size].run(sides.forward, shape, kind, degrees)
                if turn:  # the first builds and warms
                    taken[kind, side].append(results)
            alone = two.run(sides.exchange, shape, ParallelDegrees(ulysses=2))
            exchanges.append(max(result["wall_s"] for result in alone))
        rows = [_row(kind, side, results) for (kind, side), results in taken.items()]
    _compare(rows)
    return rows, statistics.median(exchanges[1:])


def _row(kind: str, side: str, rounds: list[list[dict[str, Any]]]) -> dict[str, Any]:
    walls = [max(rank["wall_s"] for rank in ranks) for ranks in rounds]
    waits = [statistics.mean(rank["waited_s"] / rank["wall_s"] for rank in ranks) for ranks in rounds]
    cpu = [[rank["cpu_s"] for rank in ranks] for ranks in rounds]
    last = rounds[-1][0]["traffic"]
    return {
        "kind": kind,
        "side": side,
        "seconds": round(statistics.median(walls), 3),
        "seconds_all": [round(wall, 3) for wall in walls],
        "cpu_s_per_rank": [round(statistics.median(times), 3) for times in zip(*cpu, strict=True)],
        "waiting_share": round(statistics.median(waits), 4),
        "sent_mb_per_rank": round(sum(one["sent_bytes"] for one in last.values()) / 1e6, 2),
        "traffic_of_rank_0": last,
    }


def _compare(rows: list[dict[str, Any]]) -> None:
    """Times as fast as one rank; for two that work for themselves, in steps per second."""
    for row in rows:
        base: dict[str, Any] = next(
            other for other in rows if other["kind"] == row["kind"] and other["side"] == "1 rank"
        )
        steps = 2 if row["side"] == "two for themselves" else 1
        ratios = [steps * a / b for a, b in zip(base["seconds_all"], row["seconds_all"], strict=True)]
        row["times_one_rank"] = round(statistics.median(ratios), 2)
        row["times_one_rank_by_cpu"] = round(steps * base["cpu_s_per_rank"][0] / max(row["cpu_s_per_rank"]), 2)


def count_bytes() -> list[dict[str, Any]]:
    """Bytes that the busiest rank sends in one attention call of ``COUNTED_SHAPE``, by ulysses degree."""
    rows = []
    for size in sorted({plan.ulysses for plan in PLANS}):
        with RankPool(size, timeout_s=300) as pool:
            counted = pool.run(sides.call_bytes, COUNTED_SHAPE, ParallelDegrees(ulysses=size))
        rows.append({"ulysses": size, "sent_bytes": max(sum(one.values()) for one in counted)})
    return rows


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--layers", type=int, default=4)
    arguments = parser.parse_args()
    shape = sides.Shape(num_layers=arguments.layers, num_heads=8, head_dim=96, grid=(8, 24, 24))
    if arguments.quick:
        arguments.rounds, shape = 1, sides.Shape(num_layers=2, num_heads=4, head_dim=24, grid=(8, 6, 6))
    document: dict[str, Any] = provenance("sequence-parallel")
    counted = count_bytes()
    rows, exchange_s = measure(shape, arguments.rounds)
    projected = project(counted)
    document |= {
        "shape": {**vars(shape), "num_tokens": shape.num_tokens},
        "rounds": arguments.rounds,
        "sides": rows,
        "exchange_alone_s": round(exchange_s, 4),
        "counted_shape": vars(COUNTED_SHAPE),
        "counted": counted,
        "assumptions": ASSUMPTIONS,
        "projected": projected,
        "load_average_after": round(os.getloadavg()[0], 2),
    }
    _report(arguments, document)


def _report(arguments: argparse.Namespace, document: dict[str, Any]) -> None:
    header = ["attention", "side", "s", "x", "x by CPU", "waiting %", "sent MB/rank", "CPU s/rank"]
    table = [
        [
            row["kind"],
            row["side"],
            row["seconds"],
            row["times_one_rank"],
            row["times_one_rank_by_cpu"],
            round(100 * row["waiting_share"], 1),
            row["sent_mb_per_rank"],
            " ".join(map(str, row["cpu_s_per_rank"])),
        ]
        for row in document["sides"]
    ]
    shape, ulysses = document["shape"], next(r for r in document["sides"] if r["side"] == "2 ranks, ulysses")
    note = (
        f"One step of a random {shape['num_layers']}-layer transformer, {shape['num_heads']} heads x "
        f"{shape['head_dim']}, {shape['num_tokens']} tokens, float32; load after {document['load_average_after']}. The "
        f"exchanges of Ulysses alone take {document['exchange_alone_s']} s, "
        f"{100 * document['exchange_alone_s'] / ulysses['seconds']:.1f}% of its dense step; waiting in the table is "
        "longer by as much as one rank waits for the other."
    )
    projected = document["projected"]
    projection_header = list(projected[0])
    projection = [list(row.values()) for row in projected]
    assumed = "Assumptions: " + "; ".join(ASSUMPTIONS) + "."
    print_table(header, table)
    print(f"\n{note}\n")
    print_table(projection_header, projection)
    print(f"\n{assumed}")
    tables = [markdown_table(header, table), note, markdown_table(projection_header, projection), assumed]
    write_results(out_dir(arguments), document, "\n\n".join(tables))


if __name__ == "__main__":
    main()
