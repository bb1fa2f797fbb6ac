"""Part of ``bench_moe``: one layer of experts, at the published sizes of DiT-MoE, in milliseconds.

*loop*: as the published code runs them: sort, count, one expert after the other with its three matrices, each result
added to its tokens. *grouped*: our kernel on the network's own weights. *prepared*: the same with weights laid out
beforehand. *dense*: one SwiGLU with as many weights as a token meets among its experts and the shared one. All sides
compute the shared experts, see the same tokens, other ones each round, and take turns within a round.

*limit*: operations over the fastest matrix product of this run, or the bytes of all weights over the fastest sum of a
large array, whichever is longer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from itertools import chain
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from models.methods.experts.gates import Routing, softmax_top_k
from models.methods.experts.grouped import PreparedExperts, grouped_swiglu
from tests.benchmarks.common import markdown_table

_TOKENS, _TOP_K = 256, 2
_SIZES = {"S, 8 experts": (384, 8), "S, 16 experts": (384, 16), "B, 8 experts": (768, 8)}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_SIDES = ("loop", "grouped", "prepared", "dense")
_ROW_S = 1.0  # of all rounds of a row, at three rounds or more


class Swiglu(NamedTuple):
    """Three matrices."""

    gate: Tensor
    up: Tensor
    down: Tensor

    def run(self, x: Tensor) -> Tensor:
        return F.linear(F.silu(F.linear(x, self.gate)) * F.linear(x, self.up), self.down)


class Layer:
    """One layer's weights, laid out for every side."""

    def __init__(self, width: int, num_experts: int, dtype: torch.dtype) -> None:
        self.width, self.dtype = width, dtype
        self.gate = _matrix(num_experts, width, torch.float32)
        self.experts = [_swiglu(width, 4 * width, dtype) for _ in range(num_experts)]
        self.shared = _swiglu(width, 2 * width, dtype)
        self.dense = _swiglu(width, _TOP_K * 4 * width + 2 * width, dtype)
        self.gate_up = torch.stack([torch.cat(expert[:2]) for expert in self.experts])
        self.down = torch.stack([expert.down for expert in self.experts])
        self.packed_shared = (torch.cat(self.shared[:2]), self.shared.down)
        self.prepared = PreparedExperts(self.gate_up, self.down, self.packed_shared)

    @property
    def operations(self) -> int:
        """Of one token."""
        return 2 * sum(weight.numel() for weight in self.dense)

    @property
    def weight_bytes(self) -> int:
        return sum(weight.nbytes for weight in chain(self.shared, *self.experts))

    def inputs(self, num_tokens: int) -> tuple[Tensor, Routing]:
        x = torch.randn(num_tokens, self.width)
        ids, weights = softmax_top_k(F.linear(x, self.gate), _TOP_K)
        return x.to(self.dtype), Routing(ids, weights.to(self.dtype))

    def side(self, name: str) -> Callable[[Tensor, Routing], Tensor]:
        sides: dict[str, Callable[[Tensor, Routing], Tensor]] = {
            "loop": self._loop,
            "grouped": lambda x, routing: grouped_swiglu(x, self.gate_up, self.down, *routing, self.packed_shared),
            "prepared": lambda x, routing: self.prepared(x, *routing),
            "dense": lambda x, _: self.dense.run(x),
        }
        return sides[name]

    def _loop(self, x: Tensor, routing: Routing) -> Tensor:
        ids, weights = routing.ids.flatten(), routing.weights.view(-1, 1)
        order = ids.argsort()
        ends = ids.bincount(minlength=len(self.experts)).cumsum(0).tolist()
        total, begin = torch.zeros_like(x), 0
        for expert, end in zip(self.experts, ends, strict=True):
            if end > begin:
                mine = order[begin:end]
                tokens = mine // _TOP_K
                out = expert.run(x[tokens]).mul_(weights[mine])
                total.scatter_add_(0, tokens.unsqueeze(1).expand(-1, self.width), out)
            begin = end
        return total + self.shared.run(x)


@torch.inference_mode()
def measure(*, quick: bool) -> dict[str, Any]:
    """A row for each size, dtype and number of pictures."""
    torch.manual_seed(0)
    batches, sizes = ((1, 4), ["S, 8 experts"]) if quick else ((1, 2, 4, 8, 16), list(_SIZES))
    bytes_per_s = _read_rate()
    rows = []
    for dtype in _DTYPES:
        for size in sizes:
            layer = Layer(*_SIZES[size], _DTYPES[dtype])
            rate = _product_rate(layer)
            for pictures in batches:
                times = _times_ms(layer, pictures * _TOKENS)
                limit_s = max(layer.operations * pictures * _TOKENS / rate, layer.weight_bytes / bytes_per_s)
                rows.append(_row(size, dtype, pictures, times, limit_s * 1e3))
    return {"threads": torch.get_num_threads(), "read_gb_per_s": round(bytes_per_s / 1e9, 1), "rows": rows}


def lines(measured: dict[str, Any]) -> list[str]:
    """A table, and its worst cases."""
    header = ["size", "dtype", "tokens", *(f"{side}, ms" for side in _SIDES), "limit, ms"]
    header += ["grouped / loop", "prepared / loop", "prepared / dense", "share of the limit"]
    rows = measured["rows"]
    cells = [
        [
            *(row[name] for name in ("size", "dtype", "tokens")),
            *(row["ms"][side] for side in _SIDES),
            *(row[name] for name in ("limit_ms", "grouped_over_loop", "prepared_over_loop", "prepared_over_dense")),
            row["share_of_limit"],
        ]
        for row in rows
    ]
    many = [row["prepared_over_dense"] for row in rows if row["tokens"] >= 2048]
    worst = [
        f"Speed against the loop, worst row: grouped {min(row['grouped_over_loop'] for row in rows)}, "
        f"prepared {min(row['prepared_over_loop'] for row in rows)}.",
        f"Prepared against dense from 2,048 tokens on, worst row: {min(many)}." if many else "",
    ]
    return [markdown_table(header, cells), "", *filter(None, worst)]


def _times_ms(layer: Layer, num_tokens: int) -> dict[str, list[float]]:
    """Of each side, one a round."""
    times: dict[str, list[float]] = {side: [] for side in _SIDES}
    rounds, turn = 3, -1  # the first round only warms up
    while turn < rounds:
        inputs = layer.inputs(num_tokens)
        first = turn % len(_SIDES)
        for side in _SIDES[first:] + _SIDES[:first]:
            times[side].append(_seconds(partial(layer.side(side), *inputs)) * 1e3)
        turn += 1
        if turn == 1:
            rounds = max(3, min(40, int(_ROW_S * 1e3 / sum(each[-1] for each in times.values()))))
    return {side: each[1:] for side, each in times.items()}


def _row(size: str, dtype: str, pictures: int, times: dict[str, list[float]], limit_ms: float) -> dict[str, Any]:
    """Ratios are of speeds, and medians over rounds."""

    def speed(ours: str, theirs: str) -> float:
        return round(median(their / our for our, their in zip(times[ours], times[theirs], strict=True)), 2)

    return {
        "size": size,
        "dtype": dtype,
        "tokens": pictures * _TOKENS,
        "rounds": len(times["loop"]),
        "ms": {side: round(median(times[side]), 2) for side in _SIDES},
        "limit_ms": round(limit_ms, 2),
        "grouped_over_loop": speed("grouped", "loop"),
        "prepared_over_loop": speed("prepared", "loop"),
        "grouped_over_dense": speed("grouped", "dense"),
        "prepared_over_dense": speed("prepared", "dense"),
        "share_of_limit": round(limit_ms / median(times["prepared"]), 2),
        "rounds_ms": {side: [round(value, 3) for value in values] for side, values in times.items()},
    }


def _product_rate(layer: Layer) -> float:
    """Operations a second of the fastest matrix product: 256 rows, many times one expert's matrix, either library."""
    x, weight = torch.randn(256, layer.width).to(layer.dtype), layer.experts[0].gate
    laid_out = torch.ops.mkldnn._reorder_linear_weight(weight, len(x))
    products: tuple[Callable[[], object], ...] = (
        lambda: F.linear(x, weight),
        lambda: torch.ops.mkldnn._linear_pointwise(x, laid_out, None, "none", [], ""),
    )
    return 2 * len(x) * weight.numel() / min(_seconds(product) for product in products for _ in range(50))


def _read_rate() -> float:
    """Bytes a second of a sum over an array that no cache holds."""
    array = torch.ones(1 << 26)
    return array.nbytes / min(_seconds(array.sum) for _ in range(10))


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _swiglu(width: int, hidden: int, dtype: torch.dtype) -> Swiglu:
    return Swiglu(_matrix(hidden, width, dtype), _matrix(hidden, width, dtype), _matrix(width, hidden, dtype))


def _matrix(num_out: int, num_in: int, dtype: torch.dtype) -> Tensor:
    return (torch.randn(num_out, num_in) / num_in**0.5).to(dtype)
