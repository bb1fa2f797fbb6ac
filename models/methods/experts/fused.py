"""SwiGLU in three calls of oneDNN, with the activation, the product and the shared experts' sum inside of them.

On a CPU its float32 matrices are faster than those behind ``torch.mm`` and ``torch._grouped_mm``, more so where weights
are laid out for it beforehand, and a row has the same bits in any number of rows from two on. What it costs: about
15 us a call, and for each new number of rows a millisecond and 150 kB, as long as oneDNN remembers it. Rows are
therefore rounded up to one of 32 numbers: a piece takes some of the next expert's, and what comes of them is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from models.methods.experts.dispatch import Dispatch

_MIN_WEIGHTS = 1 << 16  # of one matrix; calls on smaller ones cost more than they save
_MAX_ROWS = 256  # of a piece: what it makes stays near the core
_MAX_ADDED = 15

_linear = torch.ops.mkldnn._linear_pointwise


def is_worth_fusing(x: Tensor, gate_up: Tensor, down: Tensor) -> bool:
    """Whether experts of these weights run faster so. Says nothing of gradients, of which there are none."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and x.dtype == gate_up.dtype == down.dtype
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and down[0].numel() >= _MIN_WEIGHTS
        and gate_up.is_contiguous()
        and down.is_contiguous()
    )


class FusedSwiglu:
    """One expert: gate_up (2f, h) with the gate's rows first, down (h, f)."""

    def __init__(self, gate_up: Tensor, down: Tensor) -> None:
        self._gate, self._up = gate_up.detach().chunk(2)
        self._down = down.detach()

    def laid_out(self) -> FusedSwiglu:
        """The same, its weights copied into the order in which oneDNN reads them."""
        laid_out = object.__new__(FusedSwiglu)
        for name in ("_gate", "_up", "_down"):
            # The number of rows is a hint; the layout is the same for all.
            setattr(laid_out, name, torch.ops.mkldnn._reorder_linear_weight(getattr(self, name), _MAX_ROWS))
        return laid_out

    def unpacked(self) -> tuple[Tensor, Tensor]:
        """``gate_up`` and ``down`` as they were given, to the bit: a copy where they are laid out."""
        gate, up, down = (w.to_dense() if w.is_mkldnn else w for w in (self._gate, self._up, self._down))
        return torch.cat([gate, up]), down

    def __call__(self, x: Tensor, also: Tensor | None = None) -> Tensor:
        """x (n, h), at least two rows -> (n, h), plus ``also``."""
        hidden = _linear.binary(x, _linear(x, self._gate, None, "swish", [], ""), self._up, None, "mul")
        if also is None:
            return _tensor(_linear(hidden, self._down, None, "none", [], ""))
        return _tensor(_linear.binary(hidden, also, self._down, None, "add"))


def run_segments(
    x: Tensor, experts: Sequence[FusedSwiglu], dispatch: Dispatch, shared: FusedSwiglu | None = None
) -> Tensor:
    """What the experts make of x (T, h), summed by token. All on a CPU."""
    if not len(x):
        return x.clone()
    rows = x.index_select(0, F.pad(dispatch.tokens, (0, _MAX_ADDED)))
    made = [experts[expert](rows[a : a + _rounded(b - a)])[: b - a] for expert, a, b in _pieces(dispatch.ends.tolist())]
    out = dispatch.combine(torch.cat(made))
    return out if shared is None else _shared(x, shared, out)


def _shared(x: Tensor, shared: FusedSwiglu, out: Tensor) -> Tensor:
    pieces = [(a, b) for _, a, b in _pieces([len(x)])]
    padded = [F.pad(y, (0, 0, 0, _MAX_ADDED)) for y in (x, out)] if len(x) % _MAX_ROWS else [x, out]
    made = [shared(*(y[a : a + _rounded(b - a)] for y in padded))[: b - a] for a, b in pieces]
    return torch.cat(made)


def _pieces(ends: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Expert, first row and the one after the last, of at most ``_MAX_ROWS``; those of one expert are equally large."""
    begin = 0
    for expert, end in enumerate(ends):
        if end > begin:
            size = _rounded(-(-(end - begin) // -(-(end - begin) // _MAX_ROWS)))
            yield from ((expert, first, min(first + size, end)) for first in range(begin, end, size))
        begin = end


def _rounded(num_rows: int) -> int:
    """Up to a multiple of four, and from 64 on to one of eight numbers between two powers of two."""
    step = max(4, 1 << max(0, (num_rows - 1).bit_length() - 4))
    return -(-num_rows // step) * step


def _tensor(made: Any) -> Tensor:
    assert isinstance(made, Tensor)
    return made
