"""SwiGLU experts over packed weights: tokens are sorted by expert once, and each expert runs on its own in one piece.

Legend: T tokens, k experts a token, N = T * k, E experts, h width, f width of an expert's hidden layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_GROUPED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def grouped_swiglu(x: Tensor, gate_up: Tensor, down: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """Sum over each token's experts of weight * down(silu(gate x) * up x), without dropping any.

    x (T, h), gate_up (E, 2f, h) with the gate's rows first, down (E, h, f), ids int64 (T, k), weights (T, k) -> (T, h).
    """
    num_tokens, k = ids.shape
    flat = ids.flatten()
    order = flat.argsort(stable=True)
    ends = torch.bincount(flat, minlength=len(gate_up)).cumsum(0).to(torch.int32)
    rows = x.index_select(0, order if k == 1 else order // k)
    gate, up = _grouped_linear(rows, gate_up, ends).chunk(2, dim=-1)
    out = _grouped_linear(F.silu(gate) * up, down, ends)
    inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    out = out.index_select(0, inverse).view(num_tokens, k, -1)
    return (out * weights.unsqueeze(-1)).sum(dim=1).to(x.dtype)


def plain_swiglu(x: Tensor, gate_up: Tensor, down: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """The same, one expert after another."""
    out = torch.zeros_like(x)
    for expert in range(len(gate_up)):
        tokens, rank = (ids == expert).nonzero(as_tuple=True)
        gate, up = F.linear(x[tokens], gate_up[expert]).chunk(2, dim=-1)
        mine = F.linear(F.silu(gate) * up, down[expert])
        out = out.index_add(0, tokens, (mine * weights[tokens, rank].unsqueeze(-1)).to(x.dtype))
    return out


def _grouped_linear(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """x (N, i) sorted by expert, weight (E, o, i), ends int32 (E,): where each expert's rows end -> (N, o)."""
    return _GroupedLinear.apply(x, weight, ends)  # type: ignore[no-untyped-call, no-any-return]


class _GroupedLinear(torch.autograd.Function):
    """torch's own derivative refuses gradients that are not laid out as it likes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, ends)
        return _times(x, weight.transpose(1, 2), ends)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, ends = ctx.saved_tensors
        grad = grad.contiguous()
        of_x = _times(grad, weight, ends) if ctx.needs_input_grad[0] else None
        of_weight = _outer(grad, x, ends) if ctx.needs_input_grad[1] else None
        return of_x, of_weight, None


def _is_grouped(*operands: Tensor) -> bool:
    """Whether ``torch._grouped_mm`` takes them: its dtypes, and rows that begin at multiples of 16 bytes."""
    return hasattr(torch, "_grouped_mm") and all(
        x.dtype in _GROUPED_DTYPES and max(x.stride()[-2:]) * x.element_size() % 16 == 0 for x in operands
    )


def _times(x: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    """Each segment of x (N, i) times its matrix of (E, i, o)."""
    out_bytes = matrices.shape[2] * matrices.element_size()
    if _is_grouped(x, matrices) and out_bytes % 16 == 0:
        return torch._grouped_mm(x, matrices, offs=ends)
    segments = torch.tensor_split(x, ends[:-1].tolist())
    return torch.cat([segment @ matrix for segment, matrix in zip(segments, matrices, strict=True)])


def _outer(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    """Of each segment of (N, o) and (N, i), left^T right: (E, o, i)."""
    if _is_grouped(left, right):
        return torch._grouped_mm(left.t(), right, offs=ends)
    cuts = ends[:-1].tolist()
    pairs = zip(torch.tensor_split(left, cuts), torch.tensor_split(right, cuts), strict=True)
    return torch.stack([a.t() @ b for a, b in pairs])
