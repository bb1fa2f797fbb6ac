"""What each rank of ``bench_sequence_parallel`` does."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from models.families.vdit.config import OpenSoraConfig
from models.families.vdit.transformer import OpenSoraT2V
from models.methods.attention.base import SelfAttention
from models.methods.attention.dense import DenseAttention
from models.methods.attention.tile_attention import TileAttention
from models.methods.attention.tile_mask import TileMask
from models.parallel.choose import sequence_parallel
from models.parallel.degrees import ParallelDegrees
from models.parallel.forward import parallel_forward
from models.parallel.groups import SequenceGroups, make_groups, single_rank
from models.parallel.layout import split

_CAPTION, _TEXT_TOKENS = 64, 32


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A random transformer and its clip."""

    num_layers: int
    num_heads: int
    head_dim: int
    grid: tuple[int, int, int]

    @property
    def num_tokens(self) -> int:
        """Patches of the clip."""
        return self.grid[0] * self.grid[1] * self.grid[2]


class Pass:
    """Attention that costs nothing: what is left is the exchange."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, layer: int) -> Tensor:
        """The queries."""
        return q


@torch.inference_mode()
def forward(shape: Shape, kind: str, degrees: ParallelDegrees | None) -> dict[str, Any]:
    """One denoising step without guidance. No degrees: each rank for itself, all of it."""
    groups = _groups(degrees)
    model, inputs = _model(shape), _inputs(shape)
    attention = _attention(shape, kind)
    groups.meter.reset()
    _together()
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    parallel_forward(model, *inputs, groups, attention)
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    return {"wall_s": wall_s, "cpu_s": cpu_s, "waited_s": groups.meter.waited_s, "traffic": _traffic(groups)}


@torch.inference_mode()
def exchange(shape: Shape, degrees: ParallelDegrees) -> dict[str, Any]:
    """The exchanges of one step of Ulysses with nothing computed in between, when all ranks are there."""
    groups = _groups(degrees)
    length = split(shape.num_tokens, groups).lengths[groups.sequence.rank]
    q, k, v = torch.randn(3, 1, length, shape.num_heads, shape.head_dim).unbind(0)
    attention = sequence_parallel(Pass(), groups, shape.num_tokens)
    attention(q, k, v, layer=0)
    _together()
    wall_s = time.perf_counter()
    for layer in range(shape.num_layers):
        attention(q, k, v, layer=layer)
    return {"wall_s": time.perf_counter() - wall_s}


@torch.inference_mode()
def call_bytes(shape: Shape, degrees: ParallelDegrees) -> dict[str, int]:
    """Bytes that this rank sends in one attention call in bfloat16, by collective."""
    groups = _groups(degrees)
    length = split(shape.num_tokens, groups).lengths[groups.sequence.rank]
    q, k, v = torch.zeros(3, 1, length, shape.num_heads, shape.head_dim, dtype=torch.bfloat16).unbind(0)
    groups.meter.reset()
    sequence_parallel(Pass(), groups, shape.num_tokens)(q, k, v, layer=0)
    return {name: one["sent_bytes"] for name, one in _traffic(groups).items()}


def _traffic(groups: SequenceGroups) -> dict[str, dict[str, Any]]:
    return {name: asdict(one) for name, one in groups.meter.by_collective.items()}


def _attention(shape: Shape, kind: str) -> SelfAttention:
    if kind == "dense":
        return DenseAttention()
    masks = [TileMask.parse(kind.removeprefix("tile "))] * shape.num_layers
    return TileAttention(masks, shape.grid)


def _together() -> None:
    if dist.get_world_size() > 1:
        dist.barrier()


@cache
def _groups(degrees: ParallelDegrees | None) -> SequenceGroups:
    return single_rank() if degrees is None else make_groups(degrees)


@cache
def _model(shape: Shape) -> OpenSoraT2V:
    torch.manual_seed(0)
    config = OpenSoraConfig(
        num_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        attention_head_dim=shape.head_dim,
        cross_attention_dim=shape.num_heads * shape.head_dim,
        caption_channels=_CAPTION,
    )
    return OpenSoraT2V(config).eval()


@cache
def _inputs(shape: Shape) -> tuple[Tensor, Tensor, Tensor, None]:
    frames, rows, columns = shape.grid
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 4, frames, 2 * rows, 2 * columns, generator=generator)
    text = torch.randn(1, _TEXT_TOKENS, _CAPTION, generator=generator)
    return latents, torch.tensor([500.0]), text, None
