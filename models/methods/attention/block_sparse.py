"""Attention over chosen blocks: one function, several backends with one answer.

``cpu``     gathers the chosen keys and calls dense attention on them; any device, no compiler.
``triton``  a kernel that skips what is not chosen; needs a CUDA device (or Triton's interpreter).
``masked``  dense attention under the mask written out; L x L bytes, for comparison.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from models.methods.attention.block_layout import BlockLayout
from models.methods.attention.gathered import gathered_attention
from models.methods.attention.triton_support import has_triton

Backend = Literal["auto", "cpu", "triton", "masked"]


def block_sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, blocks: BlockLayout, *, backend: Backend = "auto"
) -> Tensor:
    """(B, L, N, D) each -> (B, L, N, D). Queries that see no key give 0.

    Raises: ValueError: tensors that do not fit ``blocks``, or a backend that does not run here.
    """
    _check(q, k, v, blocks)
    match _resolve(backend, q):
        case "cpu":
            return gathered_attention(q, k, v, blocks)
        case "triton":
            from models.methods.attention.triton_block_sparse import triton_attention

            return triton_attention(q, k, v, blocks)
        case "masked":
            return masked_attention(q, k, v, blocks)
    raise ValueError(f"attention backend {backend!r} is unknown; use auto, cpu, triton or masked")


def masked_attention(q: Tensor, k: Tensor, v: Tensor, blocks: BlockLayout) -> Tensor:
    """Dense attention under the mask written out."""
    mask = blocks.token_mask()
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask)
    return out.masked_fill(~mask.any(-1, keepdim=True), 0.0).transpose(1, 2)


def _check(q: Tensor, k: Tensor, v: Tensor, blocks: BlockLayout) -> None:
    expected = (blocks.mask.shape[0], blocks.num_tokens, blocks.mask.shape[1])
    for name, x in (("queries", q), ("keys", k), ("values", v)):
        if x.ndim != 4 or tuple(x.shape[:3]) != expected:
            raise ValueError(f"{name} are {tuple(x.shape)}; the block layout is for (B, L, N) = {expected}")


def _resolve(backend: Backend, q: Tensor) -> Backend:
    if backend != "auto":
        return backend
    return "triton" if q.device.type == "cuda" and has_triton() else "cpu"
