"""AdaSpa: block-sparse attention whose blocks are searched for while denoising, and used until the next search.

Source: AdaSpa, arXiv:2502.21079 (no official code found).

1. Dense steps up to the first search. That step is dense, too; its softmax denominators (LSE) are kept, and a second
   pass over queries and keys sums the weights of each pair of blocks.
2. Later searches take the LSE of the first: one pass, then the step runs with the new choice.
3. All other steps use the choice of the last search.

Legend: B batch, L tokens, N heads, D head dim, R blocks of queries, C blocks of keys.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from models.methods.attention.adaspa_config import AdaSpaConfig, num_blocks
from models.methods.attention.adaspa_search import AdaptHeads, adapt_heads, block_mass, choose_blocks
from models.methods.attention.block_layout import BlockLayout, pack, unpack
from models.methods.attention.block_sparse import Backend, block_sparse_attention
from models.methods.attention.dense import DENSE
from models.methods.attention.partial import attention_with_lse


@dataclass(slots=True, kw_only=True)
class _Chosen:
    """What one layer and branch keeps: bits (B, N, ceil(R * C / 8)); LSE float32 (B, N, L) until the last search."""

    packed: Tensor
    lse: Tensor | None
    sparsity: float


class AdaSpaAttention:
    """State of one request. Call ``begin_step`` before each pass through the layers.

    A request that starts in the middle, without its state, searches in its first step, which is then dense.
    Rows of the batch and heads have choices of their own.
    """

    def __init__(self, config: AdaSpaConfig, *, backend: Backend = "auto") -> None:
        self.config = config
        self.search_seconds = 0.0
        self._backend: Backend = backend
        self._chosen: dict[tuple[int, int], _Chosen] = {}  # by (branch, layer)
        self._step = 0
        self._branch = 0
        self._sparsities: list[float] = []

    def begin_step(self, step: int, branch: int = 0) -> None:
        """``step`` counts from 0; ``branch`` is that of guidance where its passes are calls of their own."""
        if step < 0 or branch < 0:
            raise ValueError(f"step {step} or branch {branch} is negative")
        self._step, self._branch = step, branch
        self._sparsities = []

    @property
    def state_bytes(self) -> int:
        """Bytes of the tensors held now."""
        return sum(tensor.nbytes for tensor in self.tensors())

    def tensors(self) -> list[Tensor]:
        """All that is held now."""
        kept = list(self._chosen.values())
        return [*(one.packed for one in kept), *(one.lse for one in kept if one.lse is not None)]

    @property
    def achieved_sparsity(self) -> float:
        """Share of the (token, token) pairs left out in the calls since ``begin_step``."""
        return sum(self._sparsities) / len(self._sparsities) if self._sparsities else 0.0

    @property
    def is_warm(self) -> bool:
        """Whether there is a choice for the next sparse step."""
        return bool(self._chosen)

    def release(self) -> None:
        """Drop what is held."""
        self._chosen.clear()

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, layer: int) -> Tensor:
        """See ``SelfAttention``."""
        return self.attend(q, k, v, layer=layer)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, layer: int, adapt: AdaptHeads = adapt_heads) -> Tensor:
        """The same where these heads are some of a layer's: ``adapt`` knows the others."""
        if self.config.sparsity == 0 or self._step < self.config.search_steps[0]:
            self._sparsities.append(0.0)
            return DENSE(q, k, v)
        kept = self._chosen.get((self._branch, layer))
        if kept is None or self._step == self.config.search_steps[0]:
            return self._first_search(q, k, v, layer, adapt)
        if self._step in self.config.search_steps and kept.lse is not None:
            self._search(q, k, kept.lse, layer, adapt)
        return self._sparse(q, k, v, self._chosen[self._branch, layer])

    def _first_search(self, q: Tensor, k: Tensor, v: Tensor, layer: int, adapt: AdaptHeads) -> Tensor:
        out, lse = attention_with_lse(q, k, v)
        self._search(q, k, lse.transpose(1, 2).contiguous(), layer, adapt)
        self._sparsities.append(0.0)
        return out

    def _search(self, q: Tensor, k: Tensor, lse: Tensor, layer: int, adapt: AdaptHeads) -> None:
        started_s = self._clock(q)
        mass = block_mass(q, k, lse, self.config.block_tokens)
        mask = choose_blocks(mass, self.config, q.shape[1], adapt)
        layout = BlockLayout(mask=mask, block_tokens=self.config.block_tokens, num_tokens=q.shape[1])
        is_last = self._step >= self.config.search_steps[-1]
        self._chosen[self._branch, layer] = _Chosen(
            packed=pack(mask), lse=None if is_last else lse, sparsity=layout.sparsity
        )
        self.search_seconds += self._clock(q) - started_s

    def _sparse(self, q: Tensor, k: Tensor, v: Tensor, kept: _Chosen) -> Tensor:
        blocks = num_blocks(q.shape[1], self.config.block_tokens)
        layout = BlockLayout(
            mask=unpack(kept.packed, blocks, blocks), block_tokens=self.config.block_tokens, num_tokens=q.shape[1]
        )
        self._sparsities.append(kept.sparsity)
        return block_sparse_attention(q, k, v, layout, backend=self._backend)

    @staticmethod
    def _clock(x: Tensor) -> float:
        if x.device.type == "cuda":
            torch.cuda.synchronize(x.device)
        return time.perf_counter()
