"""What bench_attention compares: each side gives a function of no arguments for one case.

Legend: B batch, L tokens, N heads, D head dim, R blocks of queries, C blocks of keys.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from models.methods.attention.adaspa_config import AdaSpaConfig
from models.methods.attention.adaspa_search import block_mass, choose_blocks
from models.methods.attention.block_layout import BlockLayout
from models.methods.attention.block_sparse import Backend, block_sparse_attention
from models.methods.attention.dense import DENSE
from models.methods.attention.partial import attention_with_lse
from models.methods.attention.tile_attention import TileAttention
from models.methods.attention.tile_mask import TileMask

FLEX_BLOCK = 128  # its default on a CPU and a GPU
Side = Callable[[], Tensor]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Queries, keys and values (B, L, N, D), alike within a neighbourhood as those of a video are."""

    q: Tensor
    k: Tensor
    v: Tensor

    @property
    def num_tokens(self) -> int:
        """L."""
        return self.q.shape[1]


def make_inputs(
    num_tokens: int, num_heads: int, dim: int, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Inputs:
    """Seeded; heads differ in how far they look."""
    generator = torch.Generator().manual_seed(num_tokens)
    shape = (1, num_tokens, num_heads, dim)
    q, k, v, slow_q, slow_k = (torch.randn(shape, generator=generator) for _ in range(5))
    reach = 2.0 ** (torch.arange(num_heads) % 4 + 4)
    phase = torch.arange(num_tokens)[:, None, None] / reach[:, None] / torch.arange(1, dim + 1)
    q, k = q + 2 * torch.cos(phase) * slow_q[:, :1], k + 2 * torch.cos(phase) * slow_k[:, :1]
    return Inputs(**{name: x.to(device, dtype) for name, x in {"q": q, "k": k, "v": v}.items()})


def searched_layouts(inputs: Inputs, sparsities: Sequence[float], block_tokens: int) -> dict[float, BlockLayout]:
    """What a first search of AdaSpa chooses for each sparsity, heads adapted."""
    _, lse = attention_with_lse(inputs.q, inputs.k, inputs.v)
    mass = block_mass(inputs.q, inputs.k, lse.transpose(1, 2).contiguous(), block_tokens)
    layouts = {}
    for sparsity in sparsities:
        config = AdaSpaConfig(sparsity=sparsity, block_tokens=block_tokens)
        mask = choose_blocks(mass, config, inputs.num_tokens)
        layouts[sparsity] = BlockLayout(mask=mask, block_tokens=block_tokens, num_tokens=inputs.num_tokens)
    return layouts


def dense_side(inputs: Inputs) -> Side:
    """The fastest backend that SDPA picks."""
    return lambda: DENSE(inputs.q, inputs.k, inputs.v)


def search_side(inputs: Inputs, sparsity: float, block_tokens: int) -> Side:
    """The pass that a search adds to a step: sums of weights, and the choice."""
    _, lse = attention_with_lse(inputs.q, inputs.k, inputs.v)
    lse = lse.transpose(1, 2).contiguous()
    config = AdaSpaConfig(sparsity=sparsity, block_tokens=block_tokens)
    return lambda: choose_blocks(block_mass(inputs.q, inputs.k, lse, block_tokens), config, inputs.num_tokens)


def block_side(inputs: Inputs, layout: BlockLayout, backend: Backend) -> Side:
    """Block-sparse attention as a denoising step runs it."""
    return lambda: block_sparse_attention(inputs.q, inputs.k, inputs.v, layout, backend=backend)


def tile_side(inputs: Inputs, mask: TileMask, grid: tuple[int, int, int]) -> Side:
    """Tile attention as a layer runs it."""
    attention = TileAttention([mask], grid)
    return lambda: attention(inputs.q, inputs.k, inputs.v, layer=0)


def masked_side(inputs: Inputs, mask: Tensor) -> Side:
    """Dense attention under a mask (..., L, L) written out before."""
    q, k, v = (x.transpose(1, 2) for x in (inputs.q, inputs.k, inputs.v))
    return lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


class Flex:
    """Compiled FlexAttention, told which blocks to take; it evaluates no mask inside them."""

    def __init__(self) -> None:
        self._compiled = torch.compile(flex_attention, dynamic=False)
        torch._dynamo.config.recompile_limit = 64  # one for each shape; above it, the slow path would be measured

    def side(self, inputs: Inputs, mask: Tensor) -> Side:
        """``mask``: bool (B, N, R, C) of blocks of ``FLEX_BLOCK``. The tensors come as the model gives them."""
        q, k, v = (x.transpose(1, 2) for x in (inputs.q, inputs.k, inputs.v))
        mask = mask.expand(q.shape[0], q.shape[1], -1, -1)
        counts = mask.sum(-1, dtype=torch.int32)
        order = mask.int().argsort(dim=-1, descending=True, stable=True).int().contiguous()
        lengths = (inputs.num_tokens, inputs.num_tokens)
        blocks = BlockMask.from_kv_blocks(counts, order, BLOCK_SIZE=FLEX_BLOCK, seq_lengths=lengths)
        return lambda: self._compiled(q, k, v, block_mask=blocks).transpose(1, 2)


def tile_blocks(mask: TileMask, num_tokens: int) -> Tensor | None:
    """Bool (1, 1, R, C) in blocks of ``FLEX_BLOCK``; None where they do not divide a frame."""
    per_frame = num_tokens // mask.num_frames
    if per_frame % FLEX_BLOCK:
        return None
    blocks = per_frame // FLEX_BLOCK
    return mask.frame_mask().repeat_interleave(blocks, 0).repeat_interleave(blocks, 1)[None, None]
