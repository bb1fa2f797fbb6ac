"""Block-sparse attention in Triton: each program takes a block of queries through its own list of key blocks.

Online softmax as in FlashAttention (arXiv:2205.14135), forward only, accumulating in float32. The list is ragged: rows
and heads may keep different numbers of blocks. Made for Hopper's sizes (blocks of 64 and 128 in bfloat16).

Legend: B batch, L tokens, N heads, D head dim, H = B * N, R blocks of queries, b tokens of a block.
"""

# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator,no-untyped-def"

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from models.methods.attention.block_layout import BlockLayout
from models.methods.attention.triton_support import has_triton, head_parts, require

if has_triton():
    import triton
    from triton import language as tl

    from models.methods.attention.triton_configs import configs

    @triton.autotune(configs=configs(), key=["block", "first", "second"])
    @triton.jit
    def _forward(
        q, k, v, out, columns, offsets, scale, num_tokens, num_heads, num_rows, dim,
        block: tl.constexpr, first: tl.constexpr, second: tl.constexpr, is_even: tl.constexpr,
    ):  # fmt: skip
        row, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
        stride = num_heads * dim  # from token to token; all tensors are (B, L, N, D)
        base = (head // num_heads * num_tokens * num_heads + head % num_heads) * dim
        tokens = tl.arange(0, block)
        in_first = tl.arange(0, first)
        rows = row * block + tokens
        is_row = (rows < num_tokens)[:, None]
        at_first = base + rows.to(tl.int64)[:, None] * stride + in_first[None, :]
        q_first = tl.load(q + at_first, mask=is_row & (in_first < dim)[None, :], other=0.0)
        acc_first = tl.zeros((block, first), tl.float32)
        if second > 0:
            in_second = first + tl.arange(0, second)
            at_second = base + rows.to(tl.int64)[:, None] * stride + in_second[None, :]
            q_second = tl.load(q + at_second, mask=is_row & (in_second < dim)[None, :], other=0.0)
            acc_second = tl.zeros((block, second), tl.float32)
        highest = tl.full((block,), float("-inf"), tl.float32)
        total = tl.zeros((block,), tl.float32)
        start = tl.load(offsets + head * num_rows + row)
        end = tl.load(offsets + head * num_rows + row + 1)
        for number in range(start, end):
            keys = tl.load(columns + number) * block + tokens
            is_key = (keys < num_tokens)[:, None]
            at_key = base + keys.to(tl.int64)[:, None] * stride
            mask_first = (in_first < dim)[None, :] if is_even else is_key & (in_first < dim)[None, :]
            k_first = tl.load(k + at_key + in_first[None, :], mask=mask_first, other=0.0)
            scores = tl.dot(q_first, tl.trans(k_first), input_precision="ieee")
            if second > 0:
                mask_second = (in_second < dim)[None, :] if is_even else is_key & (in_second < dim)[None, :]
                k_second = tl.load(k + at_key + in_second[None, :], mask=mask_second, other=0.0)
                scores += tl.dot(q_second, tl.trans(k_second), input_precision="ieee")
            scores = scores * scale
            if not is_even:
                scores = tl.where((keys < num_tokens)[None, :], scores, float("-inf"))
            higher = tl.maximum(highest, tl.max(scores, 1))
            weights = tl.exp2(scores - higher[:, None])
            shrink = tl.exp2(highest - higher)
            total = total * shrink + tl.sum(weights, 1)
            v_first = tl.load(v + at_key + in_first[None, :], mask=mask_first, other=0.0)
            acc_first = acc_first * shrink[:, None] + tl.dot(weights.to(v_first.dtype), v_first, input_precision="ieee")
            if second > 0:
                v_second = tl.load(v + at_key + in_second[None, :], mask=mask_second, other=0.0)
                acc_second = acc_second * shrink[:, None] + tl.dot(
                    weights.to(v_second.dtype), v_second, input_precision="ieee"
                )
            highest = higher
        total = tl.where(total > 0, total, 1.0)[:, None]
        tl.store(out + at_first, (acc_first / total).to(out.dtype.element_ty), mask=is_row & (in_first < dim)[None, :])
        if second > 0:
            mask_out = is_row & (in_second < dim)[None, :]
            tl.store(out + at_second, (acc_second / total).to(out.dtype.element_ty), mask=mask_out)


def triton_attention(q: Tensor, k: Tensor, v: Tensor, blocks: BlockLayout) -> Tensor:
    """(B, L, N, D) each -> (B, L, N, D).

    Raises: ValueError: no Triton, or blocks that the kernel does not take.
    """
    require(blocks.block_tokens)
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    out = torch.empty_like(q)
    batch, num_tokens, num_heads, dim = q.shape
    columns, offsets = _lists(blocks.mask)
    first, second = head_parts(dim)
    num_rows = blocks.mask.shape[2]
    kernel: Any = _forward
    kernel[(num_rows, batch * num_heads)](
        q, k, v, out, columns, offsets, math.log2(math.e) / math.sqrt(dim), num_tokens, num_heads, num_rows, dim,
        block=blocks.block_tokens, first=first, second=second, is_even=num_tokens % blocks.block_tokens == 0,
    )  # fmt: skip
    return out


def _lists(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Chosen columns, row after row, int32; where each of the H * R rows begins, int64 (H * R + 1)."""
    flat = mask.flatten(0, 2)
    columns = flat.nonzero()[:, 1].to(torch.int32)
    return columns, torch.nn.functional.pad(flat.sum(1).cumsum(0), (1, 0))
