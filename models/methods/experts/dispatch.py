"""Tokens sorted by expert, and back: gathers both ways, nothing is scattered.

Legend: T tokens, E experts, N pairs of a token and an expert that runs it, h width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Dispatch(NamedTuple):
    """Who runs what. A slot is one pair; slots are sorted by expert.

    ``tokens``: int64 (N,), of each slot. ``ends``: int32 (E,), where the slots of each expert end. ``slots``: int64
    (N,), of one token after another. ``bags``: int64 (T,), where each token's begin among ``slots``. ``weights``: (N,),
    in the order of ``slots``.
    """

    tokens: Tensor
    ends: Tensor
    slots: Tensor
    bags: Tensor
    weights: Tensor

    def spread(self, x: Tensor) -> Tensor:
        """Rows of x (T, h) in the order of slots (N, h)."""
        return _Spread.apply(x, self)  # type: ignore[no-untyped-call, no-any-return]

    def combine(self, out: Tensor) -> Tensor:
        """Weighted sums (T, h) of what slots gave (N, h)."""
        return _Combine.apply(out, self.weights, self)  # type: ignore[no-untyped-call, no-any-return]


def by_token(ids: Tensor, weights: Tensor, num_experts: int) -> Dispatch:
    """Of gates in which tokens choose: ``ids`` and ``weights`` (T, k)."""
    experts = ids.flatten()
    ends = _ends(experts, num_experts).to(torch.int32)
    return in_order(experts.argsort(stable=True), ends, weights)


def in_order(order: Tensor, ends: Tensor, weights: Tensor) -> Dispatch:
    """Slots in an order that is known: ``order``, int64 (N,), of the pairs of one token after another, whose
    ``weights`` are (T, k). ``ends``: where the slots of whoever gets them end, an expert or a rank."""
    num_tokens, k = weights.shape
    slots = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    bags = torch.arange(0, num_tokens * k, k, device=order.device)
    return Dispatch(tokens=order // k, ends=ends, slots=slots, bags=bags, weights=weights.flatten())


def by_expert(tokens: Tensor, weights: Tensor, num_tokens: int) -> Dispatch:
    """Of gates in which experts choose: ``tokens`` and ``weights`` (E, C), equally many each. A token that nobody takes
    gets zeros."""
    num_experts, capacity = tokens.shape
    flat = tokens.flatten()
    slots = flat.argsort(stable=True)
    ends = _ends(flat, num_tokens)
    return Dispatch(
        tokens=flat,
        ends=torch.arange(1, num_experts + 1, dtype=torch.int32, device=tokens.device) * capacity,
        slots=slots,
        bags=F.pad(ends[:-1], (1, 0)),
        weights=weights.flatten().index_select(0, slots),
    )


def _ends(ids: Tensor, num: int) -> Tensor:
    return torch.bincount(ids, minlength=num).cumsum(0)


class _Spread(torch.autograd.Function):
    """torch's own derivative of a gather scatters."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dispatch: Dispatch) -> Tensor:
        ctx.dispatch = dispatch
        return x.index_select(0, dispatch.tokens)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        dispatch: Dispatch = ctx.dispatch
        return _bag_sums(grad.contiguous(), dispatch, None), None


class _Combine(torch.autograd.Function):
    """One pass, and one of gathers backwards; products and sums of their own would each be one through memory."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, weights: Tensor, dispatch: Dispatch) -> Tensor:
        ctx.dispatch = dispatch
        ctx.save_for_backward(out, weights)
        return _bag_sums(out, dispatch, weights)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        dispatch: Dispatch = ctx.dispatch
        out, weights = ctx.saved_tensors
        spread = grad.index_select(0, dispatch.tokens)
        of_weights = (spread * out).sum(dim=1).index_select(0, dispatch.slots)
        by_slot = torch.empty_like(weights).scatter_(0, dispatch.slots, weights)
        return spread * by_slot.unsqueeze(1), of_weights.to(weights.dtype), None


def _bag_sums(rows: Tensor, dispatch: Dispatch, weights: Tensor | None) -> Tensor:
    scales = None if weights is None else weights.to(rows.dtype)
    return F.embedding_bag(dispatch.slots, rows, dispatch.bags, mode="sum", per_sample_weights=scales)
