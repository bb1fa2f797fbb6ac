"""How many images per second and core become TextHawk2's input: ours against the usual one-thread pipeline.

    python -m tests.benchmarks.bench_preprocess     # prints a table, writes docs/benchmarks/preprocess.{json,md}

Sides take turns within each round, on the same bytes. "plain" is PIL and NumPy in one thread, "transformers" the
library's own tiling processor; both end in normalised float32, as their models want it. Ours is the served path
(``serving.media.pool``) with one worker process and with two: probe, socket, decode, hash for the caches, tiles,
socket; it ends in uint8, and the model normalises on its device (the stage table has what that costs on a CPU). ``ms``
is processor time of all processes involved, so images/s per core is 1000 / ms. Other work on the machine lowers
images/s, most of all for two processes; it hardly changes ``ms``.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from models.families.texthawk2.tiling import best_grid, num_tiles
from serving.media.pool import MediaPool
from tests.benchmarks import preprocess_sides as sides
from tests.benchmarks.common import (
    markdown_table,
    out_dir,
    parser_of,
    print_table,
    provenance,
    write_results,
)
from tests.support.media_processors import served_processors

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
WORKERS = (1, 2)


def cpu_s(pids: list[int]) -> float:
    """Processor time of this process and of ``pids`` so far."""
    total = time.process_time()
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
    return total


def measure_function(run: Callable[[bytes], object], data: bytes, count: int) -> dict[str, float]:
    """Images one after the other, in this thread."""
    wall_s, used_s = time.perf_counter(), cpu_s([])
    for _ in range(count):
        run(data)
    return _rates(count, time.perf_counter() - wall_s, cpu_s([]) - used_s)


async def measure_pool(pool: MediaPool, data: bytes, count: int, in_flight: int) -> dict[str, float]:
    """``in_flight`` calls at a time."""
    pids, remaining = pool.worker_pids, iter(range(count))

    async def client() -> None:
        for _ in remaining:
            await pool.prepare(data, sides.MODEL)

    wall_s, used_s = time.perf_counter(), cpu_s(pids)
    await asyncio.gather(*(client() for _ in range(in_flight)))
    return _rates(count, time.perf_counter() - wall_s, cpu_s(pids) - used_s)


def _rates(count: int, wall_s: float, used_s: float) -> dict[str, float]:
    return {"images_per_s": count / wall_s, "cpu_ms": used_s / count * 1e3}


async def measure(rounds: int, seconds: float, names: list[str]) -> list[dict[str, Any]]:
    """Every side on every file, in turns."""
    functions = {"plain": sides.plain, "transformers": sides.library()}
    served = served_processors(sides.MODEL)
    pools = {f"ours, {count} process" + "es" * (count > 1): MediaPool(sides.LIMITS, count, served) for count in WORKERS}
    for pool in pools.values():
        await pool.start()
    try:
        rows = []
        for name in names:
            rows += await _measure_file(name, functions, pools, rounds, seconds)
        return rows
    finally:
        for pool in pools.values():
            await pool.stop()


async def _measure_file(
    name: str,
    functions: dict[str, Callable[[bytes], Any]],
    pools: dict[str, MediaPool],
    rounds: int,
    seconds: float,
) -> list[dict[str, Any]]:
    size, data = sides.payloads()[name]
    count = await _count_for(data, functions["plain"], seconds)
    taken: dict[str, list[dict[str, float]]] = {side: [] for side in (*functions, *pools)}
    for pool in pools.values():
        await measure_pool(pool, data, 8, 4)  # warm
    for _ in range(rounds):
        for side, run in functions.items():
            taken[side].append(measure_function(run, data, count))
        for side, pool in pools.items():
            taken[side].append(await measure_pool(pool, data, 3 * count, 4))
    plain = sides.median_of(taken["plain"], "images_per_s")
    return [
        {
            "image": name,
            "file_bytes": len(data),
            "tiles": num_tiles(best_grid(size[1], size[0])),
            "side": side,
            "images_per_round": count if side in functions else 3 * count,
            "images_per_s": round(sides.median_of(rows, "images_per_s"), 1),
            "images_per_s_all": [round(row["images_per_s"], 1) for row in rows],
            "cpu_ms": round(sides.median_of(rows, "cpu_ms"), 2),
            "times_plain": round(sides.median_of(rows, "images_per_s") / plain, 2),
        }
        for side, rows in taken.items()
    ]


async def _count_for(data: bytes, run: Callable[[bytes], object], seconds: float) -> int:
    """Images that the plain side needs about ``seconds`` for."""
    run(data)
    started_s = time.perf_counter()
    run(data)
    return max(4, int(seconds / (time.perf_counter() - started_s)))


def stage_rows(names: list[str], repeats: int, bandwidth: float) -> list[dict[str, Any]]:
    """Our stages, in a fresh process, beside the time that memory alone would need for the bytes that are moved."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        stages = pool.apply(sides.measure_stages, (names, repeats))
    rows = []
    for name in names:
        size, data = sides.payloads()[name]
        moved = sides.bytes_moved(size, len(data))
        rows.append(
            {
                "image": name,
                **stages[name],
                "moved_mb": round(moved / 1e6, 2),
                "memory_ms": round(moved / bandwidth * 1e3, 3),
            }
        )
    return rows


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a turn of the plain side")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.seconds = 1, 0.1
    document: dict[str, Any] = provenance("preprocess")
    names = list(sides.payloads())
    bandwidth = sides.copy_bandwidth()
    rows = asyncio.run(measure(arguments.rounds, arguments.seconds, names))
    stages = stage_rows(names, 5 if arguments.quick else 30, bandwidth)
    document |= {"rounds": arguments.rounds, "copy_bytes_per_s": round(bandwidth), "sides": rows, "stages": stages}
    document["load_average_after"] = round(os.getloadavg()[0], 2)
    header = ["image", "tiles", "side", "images/s", "times plain", "ms", "images/s per core"]
    table = [
        [
            r["image"],
            r["tiles"],
            r["side"],
            r["images_per_s"],
            r["times_plain"],
            r["cpu_ms"],
            round(1e3 / r["cpu_ms"], 1),
        ]
        for r in rows
    ]
    print_table(header, table)
    print()
    print_table(list(stages[0]), [list(row.values()) for row in stages])
    note = (
        f"One copying thread moves {bandwidth / 1e9:.1f} GB/s (read plus written). `memory_ms` is what the bytes that "
        "ours moves per image would take at that rate."
    )
    print(note)
    stage_table = markdown_table(list(stages[0]), [list(row.values()) for row in stages])
    write_results(out_dir(arguments), document, f"{markdown_table(header, table)}\n\n{stage_table}\n\n{note}")


if __name__ == "__main__":
    main()
