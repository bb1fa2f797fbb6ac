"""The second pass of AdaSpa's search in Triton: weights summed over pairs of blocks, scores never leave the chip.

Legend: B batch, L tokens, N heads, D head dim, H = B * N, R blocks of queries, C blocks of keys, b tokens of a block.
"""

# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator,no-untyped-def"

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from models.methods.attention.adaspa_config import num_blocks
from models.methods.attention.triton_support import has_triton, head_parts, require

if has_triton():
    import triton
    from triton import language as tl

    from models.methods.attention.triton_configs import configs

    @triton.autotune(configs=configs(), key=["block", "first", "second"])
    @triton.jit
    def _mass(
        q, k, lse, mass, scale, num_tokens, num_heads, num_columns, dim,
        block: tl.constexpr, first: tl.constexpr, second: tl.constexpr,
    ):  # fmt: skip
        row, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
        stride = num_heads * dim
        base = (head // num_heads * num_tokens * num_heads + head % num_heads) * dim
        tokens = tl.arange(0, block)
        in_first = tl.arange(0, first)
        rows = row * block + tokens
        is_row = rows < num_tokens
        at_row = base + rows.to(tl.int64)[:, None] * stride
        mask_first = (in_first < dim)[None, :]
        q_first = tl.load(q + at_row + in_first[None, :], mask=is_row[:, None] & mask_first, other=0.0)
        if second > 0:
            in_second = first + tl.arange(0, second)
            mask_second = (in_second < dim)[None, :]
            q_second = tl.load(q + at_row + in_second[None, :], mask=is_row[:, None] & mask_second, other=0.0)
        shift = tl.load(lse + head * num_tokens + rows, mask=is_row, other=float("inf")) * 1.4426950408889634
        for column in range(0, num_columns):
            keys = column * block + tokens
            is_key = keys < num_tokens
            at_key = base + keys.to(tl.int64)[:, None] * stride
            k_first = tl.load(k + at_key + in_first[None, :], mask=is_key[:, None] & mask_first, other=0.0)
            scores = tl.dot(q_first, tl.trans(k_first), input_precision="ieee")
            if second > 0:
                k_second = tl.load(k + at_key + in_second[None, :], mask=is_key[:, None] & mask_second, other=0.0)
                scores += tl.dot(q_second, tl.trans(k_second), input_precision="ieee")
            exponent = tl.minimum(scores * scale - shift[:, None], 86.0)
            weights = tl.where(is_key[None, :], tl.exp2(exponent), 0.0)
            at = (head * num_columns + row) * num_columns + column
            tl.store(mass + at, tl.sum(weights))


def triton_block_mass(q: Tensor, k: Tensor, lse: Tensor, block_tokens: int) -> Tensor:
    """See ``adaspa_search.block_mass``.

    Raises: ValueError: no Triton, or blocks that the kernel does not take.
    """
    require(block_tokens)
    batch, num_tokens, num_heads, dim = q.shape
    blocks = num_blocks(num_tokens, block_tokens)
    mass = torch.empty(batch, num_heads, blocks, blocks, dtype=torch.float32, device=q.device)
    first, second = head_parts(dim)
    kernel: Any = _mass
    kernel[(blocks, batch * num_heads)](
        q.contiguous(), k.contiguous(), lse.contiguous(), mass, math.log2(math.e) / math.sqrt(dim), num_tokens,
        num_heads, blocks, dim, block=block_tokens, first=first, second=second,
    )  # fmt: skip
    return mass
