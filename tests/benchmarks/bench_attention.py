"""Sparse attention against dense, compiled FlexAttention and masking: what share of the possible speed-up is reached.

    python -m tests.benchmarks.bench_attention                  # writes docs/benchmarks/attention.{json,md}
    python -m tests.benchmarks.bench_attention --device cuda    # full-size shapes in bfloat16, attention-gpu.{json,md}

The limit for a sparsity s is 1 / (1 - s): arithmetic falls by that, and attention over thousands of tokens is bound by
arithmetic (4 L L D operations per head; keys and values are 8 L D bytes). Sides take turns within each round; times are
the least of all rounds. On a CPU they are processor time of one thread, which other work on the machine disturbs less
than the clock on the wall. "adaspa" is the attention of a step between two searches, with blocks that the search itself
chose, heads adapted; "search" is what a step pays for looking again.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from models.methods.attention.tile_mask import TileMask
from tests.benchmarks import attention_sides as sides
from tests.benchmarks.common import markdown_table, out_dir, parser_of, print_table, provenance, write_results

Case = dict[str, Any]

CPU_TOKENS = (2048, 4096, 8192, 16384, 32768)
SPARSITIES = (0.5, 0.7, 0.8, 0.9)
CPU_TILES = {8: ("2:6", "1:7"), 24: ("3:21",)}  # by latent frames
ADASPA_FRAMES = 8
MASKED_TOKENS = 8192  # above, the mask alone is gigabytes
CPU_DIM, CPU_BLOCKS = 96, (64, 128)
GPU_SHAPES = {  # (t, h, w) of patches, heads, head dim, tile masks
    "osp-29x720p": ((8, 45, 80), 24, 96, ("4:4", "2:6", "1:7")),
    "osp-93x720p": ((24, 45, 80), 24, 96, ("8:16", "4:20", "3:21")),
    "hunyuan-129x720p": ((33, 45, 80), 24, 128, ("8:25", "4:29")),
}
GPU_SPARSITIES = (0.8, 0.9)
STEPS, SEARCHES, DENSE_STEPS = 50, 2, 10  # of a generation, as published


def grid_of(num_tokens: int, num_frames: int) -> tuple[int, int, int]:
    """A grid of about that many tokens, h and w different where frames are not powers of two."""
    per_frame = num_tokens // num_frames
    height = int(per_frame**0.5)
    return num_frames, height, per_frame // height


def seconds(side: sides.Side, device: str) -> float:
    """One call."""
    if device == "cpu":
        started_s = time.process_time()
        side()
        return time.process_time() - started_s
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    side()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def race(racers: Mapping[str, sides.Side], rounds: int, device: str) -> dict[str, float]:
    """Least seconds of each side, taking turns, after one call of each."""
    for side in racers.values():
        side()
    taken = {name: [] for name in racers}  # type: dict[str, list[float]]
    for _ in range(rounds):
        for name, side in racers.items():
            taken[name].append(seconds(side, device))
    return {name: min(values) for name, values in taken.items()}


@dataclass(kw_only=True)
class Race:
    """Sides of one shape, all of which answer for the same inputs; each has a mask's name and a sparsity."""

    inputs: sides.Inputs
    case: Mapping[str, Any]
    flex: sides.Flex | None
    is_masked_small_enough: bool
    racers: dict[str, sides.Side] = field(default_factory=dict)
    labels: dict[str, Case] = field(default_factory=dict)

    def add(self, mask: str, side: str, sparsity: float | None, run: sides.Side) -> None:
        """One more side."""
        self.racers[f"{mask}, {side}"] = run
        self.labels[f"{mask}, {side}"] = {"mask": mask, "side": side, "sparsity": sparsity}

    def add_adaspa(self, sparsities: Sequence[float], block: int) -> None:
        """Our side at each sparsity, and the search once."""
        for wanted, layout in sides.searched_layouts(self.inputs, sparsities, block).items():
            name = f"adaspa {wanted}"
            self.add(name, f"ours, blocks of {block}", layout.sparsity, sides.block_side(self.inputs, layout, "auto"))
            if block == sides.FLEX_BLOCK:
                self._add_rivals(name, layout.sparsity, layout.mask, layout.token_mask)
        self.add("search", f"blocks of {block}", None, sides.search_side(self.inputs, sparsities[0], block))

    def add_tile(self, name: str, grid: tuple[int, int, int]) -> None:
        """Ours under one tile mask."""
        mask = TileMask.parse(name)
        self.add(f"tile {name}", "ours", mask.sparsity, sides.tile_side(self.inputs, mask, grid))
        blocks = sides.tile_blocks(mask, self.inputs.num_tokens)
        self._add_rivals(f"tile {name}", mask.sparsity, blocks, lambda: mask.token_mask(grid[1] * grid[2]))

    def _add_rivals(
        self, name: str, sparsity: float, blocks: torch.Tensor | None, token_mask: Callable[[], torch.Tensor]
    ) -> None:
        if self.flex is not None and blocks is not None:
            flex_side = self.flex.side(self.inputs, blocks.to(self.inputs.q.device))
            self.add(name, "flex", sparsity, flex_side)
        if self.is_masked_small_enough:
            self.add(name, "masked", sparsity, sides.masked_side(self.inputs, token_mask()))

    def run(self, rounds: int, device: str) -> list[Case]:
        """One row for each side, with dense attention in every round."""
        times = race({"dense": sides.dense_side(self.inputs), **self.racers}, rounds, device)
        dense = times.pop("dense")
        return [self._row(name, taken, dense) for name, taken in times.items()]

    def _row(self, name: str, taken: float, dense: float) -> Case:
        row = {**self.case, **self.labels[name], "dense_ms": round(dense * 1e3, 2), "ms": round(taken * 1e3, 2)}
        sparsity = row["sparsity"]
        if sparsity is None:
            return {**row, "of_dense": round(taken / dense, 3)}
        speedup, limit = dense / taken, 1 / (1 - sparsity)
        row |= {"sparsity": round(sparsity, 4), "speedup": round(speedup, 2), "limit": round(limit, 2)}
        return {**row, "share_of_limit": round(speedup / limit, 2)}


class Options(argparse.Namespace):
    """What was asked for."""

    device: str
    rounds: int
    tokens: list[int]
    quick: bool


def cpu_rows(options: Options, flex: sides.Flex | None) -> Iterator[Case]:
    """All cases of a CPU."""
    for num_tokens in options.tokens[: 1 if options.quick else None]:
        for num_frames, tiles in CPU_TILES.items():
            grid = grid_of(num_tokens, num_frames)
            inputs = sides.make_inputs(grid[0] * grid[1] * grid[2], heads_for(num_tokens), CPU_DIM)
            is_small = num_tokens <= MASKED_TOKENS
            contest = Race(
                inputs=inputs, case={"tokens": inputs.num_tokens, "grid": list(grid)}, flex=flex,
                is_masked_small_enough=is_small,
            )  # fmt: skip
            if num_frames == ADASPA_FRAMES:
                for block in CPU_BLOCKS if is_small else CPU_BLOCKS[-1:]:
                    contest.add_adaspa(SPARSITIES, block)
            for name in tiles:
                contest.add_tile(name, grid)
            yield from contest.run(options.rounds, "cpu")


def gpu_rows(options: Options, flex: sides.Flex | None) -> Iterator[Case]:
    """Full-size shapes."""
    for shape, (grid, num_heads, dim, tiles) in list(GPU_SHAPES.items())[: 1 if options.quick else None]:
        num_tokens = grid[0] * grid[1] * grid[2]
        inputs = sides.make_inputs(num_tokens, num_heads, dim, options.device, torch.bfloat16)
        contest = Race(
            inputs=inputs, case={"shape": shape, "tokens": num_tokens}, flex=flex, is_masked_small_enough=False
        )
        for block in CPU_BLOCKS:
            contest.add_adaspa(GPU_SPARSITIES, block)
        for name in tiles:
            contest.add_tile(name, grid)
        yield from contest.run(options.rounds, options.device)


def heads_for(num_tokens: int) -> int:
    """As many as keep a call to seconds."""
    return max(1, min(4, 16384 // num_tokens))


def show(rows: Iterator[Case]) -> list[Case]:
    """Print them as they come."""
    kept = []
    for row in rows:
        print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
        kept.append(row)
    return kept


def search_shares(rows: list[Case]) -> list[list[object]]:
    """Search beside the attention of a whole generation as published: 10 dense steps, 40 sparse, 2 searches."""
    table: list[list[object]] = []
    for search in (row for row in rows if row["mask"] == "search"):
        for row in rows:
            is_same = row["side"] == f"ours, {search['side']}" and row["tokens"] == search["tokens"]
            if not (is_same and row["mask"] == "adaspa 0.8"):
                continue
            searches_ms = SEARCHES * search["ms"]
            attention_ms = DENSE_STEPS * row["dense_ms"] + (STEPS - DENSE_STEPS) * row["ms"] + searches_ms
            table.append(
                [
                    search["tokens"],
                    search["side"],
                    search["ms"],
                    search["of_dense"],
                    f"{searches_ms / attention_ms:.1%}",
                ]
            )
    return table


def report(rows: list[Case]) -> str:
    """Tables for people."""
    names = ["mask", "tokens", "side", "sparsity", "dense_ms", "ms", "speedup", "limit", "share_of_limit"]
    header = ["mask", "tokens", "side", "sparsity", "dense, ms", "ms", "speed-up", "limit", "share of the limit"]
    table = markdown_table(header, [[row[name] for name in names] for row in rows if "speedup" in row])
    header = ["tokens", "search", "ms", "of a dense call", "share of all attention"]
    search = markdown_table(header, search_shares(rows))
    return (
        f"{table}\n\nWhat a search costs, and its share of the attention of a generation at sparsity 0.8 as "
        f"published ({DENSE_STEPS} dense steps, {STEPS - DENSE_STEPS} sparse, {SEARCHES} searches):\n\n{search}"
    )


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--no-flex", action="store_true", help="leave out FlexAttention, which takes time to compile")
    parser.add_argument("--tokens", type=int, nargs="+", default=list(CPU_TOKENS), help="lengths, on a CPU")
    options = parser.parse_args(namespace=Options())
    options.rounds = 1 if options.quick else options.rounds
    torch.set_num_threads(1)
    document: dict[str, Any] = provenance("attention")
    flex = None if options.no_flex else sides.Flex()
    measure = cpu_rows if options.device == "cpu" else gpu_rows
    with torch.inference_mode():
        rows = show(measure(options, flex))
    document |= {"rounds": options.rounds, "device": _device_name(options.device), "threads": 1, "rows": rows}
    document["load_average_after"] = round(os.getloadavg()[0], 2)
    if options.device != "cpu":
        document["benchmark"] = "attention-gpu"
    text = report(rows)
    print_table(["mask", "tokens", "side", "share"], [
        [row["mask"], row["tokens"], row["side"], row["share_of_limit"]] for row in rows if "share_of_limit" in row
    ])  # fmt: skip
    write_results(out_dir(options), document, f"{text}\n\n{_NOTE}")


_NOTE = """Processor time of one thread, float32, head dim 96; the least of the rounds. "flex" is compiled FlexAttention
over the same blocks of 128, "masked" is dense attention under a mask written out. `--device cuda` measures the
full-size shapes of Open-Sora-Plan and HunyuanVideo in bfloat16; it has not been run: no GPU was at hand."""


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


if __name__ == "__main__":
    main()
