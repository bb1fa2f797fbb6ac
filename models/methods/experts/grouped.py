"""SwiGLU experts over packed weights: tokens are sorted by expert once, and each expert runs on its own in one piece.

Operations: 6 h f for each pair of a token and an expert; bytes: the weights of the experts that are asked, once, and
less than a tenth of the former's time for everything else.

Legend: T tokens, k experts a token, N pairs of both, E experts, h width, f width of an expert's hidden layer, s of the
shared one's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from models.methods.experts.dispatch import Dispatch, by_token
from models.methods.experts.fused import FusedSwiglu, is_worth_fusing, run_segments

_GROUPED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def grouped_swiglu(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    ids: Tensor,
    weights: Tensor,
    shared: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Sum over each token's experts of weight * down(silu(gate x) * up x), without dropping any.

    x (T, h), gate_up (E, 2f, h) with the gate's rows first, down (E, h, f), ids int64 (T, k), weights (T, k) -> (T, h).
    ``shared``: gate_up (2s, h) and down (h, s) of an expert that all tokens pass, with weight 1.
    """
    return dispatched_swiglu(x, gate_up, down, by_token(ids, weights, len(gate_up)), shared)


def dispatched_swiglu(
    x: Tensor, gate_up: Tensor, down: Tensor, dispatch: Dispatch, shared: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """The same for any gate. Matrices that are stored transposed are given as views."""
    packed = (gate_up, down, *(shared or ()))
    if is_worth_fusing(x, gate_up, down) and not _needs_grad(x, dispatch.weights, *packed):
        experts = [FusedSwiglu(*pair) for pair in zip(gate_up, down, strict=True)]
        return run_segments(x, experts, dispatch, FusedSwiglu(*shared) if shared else None)
    hidden = _activated(_grouped_linear(dispatch.spread(x), gate_up, dispatch.ends))
    out = dispatch.combine(_grouped_linear(hidden, down, dispatch.ends))
    return out if shared is None else out + F.linear(_activated(F.linear(x, shared[0])), shared[1])


class PreparedExperts:
    """Experts laid out for the processor once, where the same weights run many times: for inference on a CPU.

    A copy of the same size, which gives the weights back (``FusedSwiglu.unpacked``), so that it can stand in for them.
    Weights that change must be prepared again. ``shared``: None, or what all tokens pass.
    """

    def __init__(self, gate_up: Tensor, down: Tensor, shared: tuple[Tensor, Tensor] | None = None) -> None:
        with torch.no_grad():
            self.experts = [FusedSwiglu(*pair).laid_out() for pair in zip(gate_up, down, strict=True)]
            self.shared = FusedSwiglu(*shared).laid_out() if shared else None

    @staticmethod
    def suit(gate_up: Tensor, down: Tensor) -> bool:
        """Whether these weights run faster prepared: on a CPU with oneDNN, in a dtype that it is fast in, and large
        enough for its overhead."""
        return is_worth_fusing(gate_up, gate_up, down)

    def __call__(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """As ``grouped_swiglu``. Has no gradients."""
        with torch.no_grad():
            return run_segments(x, self.experts, by_token(ids, weights, len(self.experts)), self.shared)


def plain_swiglu(x: Tensor, gate_up: Tensor, down: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """The same without a shared one, one expert after another."""
    out = torch.zeros_like(x)
    for expert in range(len(gate_up)):
        tokens, rank = (ids == expert).nonzero(as_tuple=True)
        mine = F.linear(_activated(F.linear(x[tokens], gate_up[expert])), down[expert])
        out = out.index_add(0, tokens, (mine * weights[tokens, rank].unsqueeze(-1)).to(x.dtype))
    return out


def _needs_grad(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _activated(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


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
