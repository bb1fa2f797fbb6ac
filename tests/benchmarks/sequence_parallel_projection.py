"""From counted bytes to seconds on several GPUs, under assumptions that are written beside the result."""

from __future__ import annotations

from typing import Any

from models.parallel.degrees import ParallelDegrees
from tests.benchmarks.sequence_parallel_sides import Shape

_BRANCHES = 2
COUNTED_SHAPE = Shape(num_layers=32, num_heads=24, head_dim=96, grid=(8, 45, 80))
_TIMES_COUNTED = {"29 frames 720p": 1, "93 frames 720p": 3}
PLANS = [
    ParallelDegrees(ulysses=2),
    ParallelDegrees(ulysses=4),
    ParallelDegrees(ulysses=8),
    ParallelDegrees(ulysses=4, cfg=2),
]
_ONE_GPU_S = {"29 frames 720p": 5.56, "93 frames 720p": 39.06}
_PUBLISHED_S = {
    ("29 frames 720p", 2): 2.98,
    ("29 frames 720p", 4): 1.52,
    ("93 frames 720p", 2): 20.00,
    ("93 frames 720p", 4): 10.02,
}
_ATTENTION_SHARE = {"29 frames 720p": 0.67, "93 frames 720p": 0.86}
_TILE_SPARSITY = {"29 frames 720p": ("2:6", 30 / 64), "93 frames 720p": ("3:21", 420 / 576)}
_LINKS = {"NVLink": 300e9, "PCIe": 20e9}
ASSUMPTIONS = [
    "Open-Sora-Plan v1.2, 32 layers, 24 heads x 96, bfloat16, both branches of guidance in a step",
    "seconds of one GPU as printed by Efficient-vDiT (5.56 and 39.06 a step), shared out evenly",
    "bytes counted at 28,800 tokens (29 frames); 86,400 tokens (93 frames) are three times as many",
    "each GPU sends at 300 GB/s (NVLink) or 20 GB/s (PCIe) and receives at the same time",
    "nothing is computed while heads are exchanged",
    "attention is 67% and 86% of a dense step, and a tile mask saves its whole sparsity: the worst case for the share "
    "of communication",
]


def project(counted: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each shape, attention and plan."""
    sent = {row["ulysses"]: row["sent_bytes"] for row in counted}
    return [
        _row(name, kind, kept, plan, sent[plan.ulysses] * more)
        for name, more in _TIMES_COUNTED.items()
        for kind, kept in _kinds(name)
        for plan in PLANS
    ]


def _kinds(name: str) -> list[tuple[str, float]]:
    """Kinds of attention and the part of a dense step's work that they leave."""
    tile, sparsity = _TILE_SPARSITY[name]
    return [("dense", 1.0), (f"tile {tile}", 1 - sparsity * _ATTENTION_SHARE[name])]


def _row(name: str, kind: str, kept: float, plan: ParallelDegrees, call_bytes: int) -> dict[str, Any]:
    one_gpu_s = _ONE_GPU_S[name] * kept
    compute_s = one_gpu_s / plan.total
    step_bytes = call_bytes * COUNTED_SHAPE.num_layers * _BRANCHES // plan.cfg
    row: dict[str, Any] = {
        "clip": name,
        "attention": kind,
        "GPUs": f"{plan.total}" + (" (cfg 2)" if plan.cfg == 2 else ""),
        "sent GB/step/GPU": round(step_bytes / 1e9, 2),
    }
    for link, bytes_per_s in _LINKS.items():
        step_s = compute_s + step_bytes / bytes_per_s
        row |= {
            f"s/step {link}": round(step_s, 3),
            f"x {link}": round(one_gpu_s / step_s, 2),
            f"comm % {link}": round(100 * step_bytes / bytes_per_s / step_s, 1),
        }
    published = _PUBLISHED_S.get((name, plan.total)) if kind == "dense" else None
    return row | {"published s/step": published}
