"""One call of a diffusers transformer, during which its self-attention is another.

A network's own processors project, normalise and rotate as they always do; what they hand to torch's scaled dot-product
attention is taken over here. Which of those calls are self-attention is told by the numbers of tokens alone:

    queries = keys = the tokens of the latents       self-attention
    queries = keys = those and the text's            text and picture attend together
    anything else                                    cross-attention: left as it is

Legend: B batch, N heads, L tokens, D head dim, S text tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from models.methods.attention.base import SelfAttention
from models.methods.diffusers.networks import TextPlace
from models.methods.diffusers.tokens import Tokens

AttentionFor = Callable[[int], SelfAttention]
"""From a number of text tokens, which stand at the end, to the attention of this call."""

_CALL: ContextVar[AttentionCall | None] = ContextVar("call", default=None)


def current_call() -> AttentionCall | None:
    """The call that this thread is in, if its attention is another than the network's own."""
    return _CALL.get()


def current_tokens() -> Tokens | None:
    """The tokens that are run here in the call that this thread is in, if they may be some of them."""
    call = _CALL.get()
    return None if call is None else call.tokens


class AttentionCall(TorchFunctionMode):
    """Attention of one call of a network over latents of ``num_tokens`` tokens. ``tokens``: those of them that are run
    here, if not all."""

    def __init__(self, attention: AttentionFor, num_tokens: int, text: TextPlace, tokens: Tokens | None = None) -> None:
        super().__init__()
        self._attention = attention
        self._num_tokens = num_tokens if tokens is None else tokens.length
        self.tokens = tokens
        self._text = text
        self._layer: int | None = None
        self._crossed: int | None = None
        self._num_thinned = 0

    @contextmanager
    def active(self, *, must_attend: bool) -> Iterator[None]:
        """While the network runs.

        Raises: ValueError: none of its attention was over the tokens of the latents, though it must be.
        """
        token = _CALL.set(self)
        try:
            with self:
                yield
        finally:
            _CALL.reset(token)
        if must_attend and not self._num_thinned:
            raise ValueError(
                f"no attention of this network is over the {self._num_tokens} tokens of the latents through torch's "
                "scaled dot-product attention; use attention=dense, and diffusers' native attention backend"
            )

    def enter(self, layer: int, hidden: Tensor, others: Tensor | None) -> None:
        """The attention module ``layer`` begins with ``hidden`` (B, L, W); ``others``: what it attends to besides."""
        self._layer = layer
        self._crossed = None if others is None else hidden.shape[1]

    def leave(self) -> None:
        """It has ended."""
        self._layer = None

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        """Take over attention, pass on everything else."""
        kwargs = kwargs or {}
        if self._layer is None or func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        return self._attend(func, *args, **kwargs)

    def _attend(
        self,
        func: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        length = query.shape[-2]
        num_text = length - self._num_tokens
        fits = num_text == 0 or (num_text > 0 and self._text != "none")
        is_plain = not is_causal and scale is None and not enable_gqa and dropout_p == 0
        if length == self._crossed or length != key.shape[-2] or not fits or not is_plain:
            dense: Tensor = func(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
            return dense
        assert self._layer is not None
        self._num_thinned += 1
        order = self._order(attn_mask, length, num_text)
        q, k, v = (_ordered(x.transpose(1, 2), order) for x in (query, key, value))
        out = self._attention(q.shape[1] - self._num_tokens)(q, k, v, layer=self._layer)
        return _put_back(out, order, length).transpose(1, 2)

    def _order(self, mask: Tensor | None, length: int, num_text: int) -> Tensor | None:
        """Numbers of the tokens that attend, those of the latents first, then the text; None: all as they are."""
        is_moved = num_text > 0 and self._text == "first"
        valid = None if mask is None else _valid(mask, num_text if is_moved else 0)
        if valid is None and not is_moved:
            return None
        numbers = torch.arange(length, device=None if valid is None else valid.device)
        if is_moved:
            numbers = numbers.roll(-num_text)
        return numbers if valid is None else numbers[valid[numbers]]


def _valid(mask: Tensor, first: int) -> Tensor | None:
    """Of a padding mask (B, 1, 1 or L, L), the keys (L,) that the tokens of the latents see, of which ``first`` is the
    first; None: all of them.

    Raises: ValueError: rows that differ.
    """
    seen = mask[:, 0, min(first, mask.shape[2] - 1)]
    seen = seen if seen.dtype == torch.bool else seen > torch.finfo(seen.dtype).min / 2
    if bool(seen.all()):
        return None
    if not bool((seen == seen[:1]).all()):
        raise ValueError("rows of a batch have texts of different lengths; sparse attention takes one row at a time")
    return seen[0]


def _ordered(x: Tensor, order: Tensor | None) -> Tensor:
    return x if order is None else x.index_select(1, order.to(x.device))


def _put_back(out: Tensor, order: Tensor | None, length: int) -> Tensor:
    """Undo ``_ordered``; tokens of padding, which nobody looks at, are zeros."""
    if order is None:
        return out
    whole = out.new_zeros((out.shape[0], length, *out.shape[2:]))
    return whole.index_copy_(1, order.to(out.device), out)
