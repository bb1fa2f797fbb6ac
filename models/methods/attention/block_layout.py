"""Which blocks of keys each block of queries sees, per row of the batch and head.

Legend: B batch, L tokens, N heads, R blocks of queries, C blocks of keys (= R), b tokens of a block; the last
is partial where b does not divide L.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.methods.attention.adaspa_config import num_blocks

_BITS = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockLayout:
    """``mask`` is bool (B, N, R, C), True = attend; rows may see any number of blocks, also none.

    Raises: ValueError: numbers that do not fit together.
    """

    mask: Tensor
    block_tokens: int
    num_tokens: int

    def __post_init__(self) -> None:
        blocks = num_blocks(self.num_tokens, self.block_tokens)
        if self.mask.dtype != torch.bool or self.mask.ndim != 4 or self.mask.shape[2:] != (blocks, blocks):
            raise ValueError(
                f"block mask is {self.mask.dtype} {tuple(self.mask.shape)}; {self.num_tokens} tokens in blocks of "
                f"{self.block_tokens} need bool (B, N, {blocks}, {blocks})"
            )

    @property
    def counts(self) -> Tensor:
        """Blocks of keys that each block of queries sees. (B, N, R)."""
        return self.mask.sum(-1)

    @property
    def sparsity(self) -> float:
        """Share of the (token, token) pairs that is left out; a partial block counts for its tokens."""
        tokens = block_lengths(self.num_tokens, self.block_tokens, self.mask.device).double()
        kept = torch.einsum("bnrc,r,c->bn", self.mask.double(), tokens, tokens)
        return 1.0 - kept.mean().item() / self.num_tokens**2

    def token_mask(self) -> Tensor:
        """Bool (B, N, L, L) written out; the twin that tests compare with."""
        block = torch.arange(self.num_tokens, device=self.mask.device) // self.block_tokens
        return self.mask[:, :, block][..., block]


def block_lengths(num_tokens: int, block_tokens: int, device: torch.device) -> Tensor:
    """Tokens of each block, int64."""
    starts = torch.arange(0, num_tokens, block_tokens, device=device)
    return (num_tokens - starts).clamp(max=block_tokens)


def pack(mask: Tensor) -> Tensor:
    """Bool (B, N, R, C) -> uint8 (B, N, ceil(R * C / 8)), the first in the lowest bit."""
    flat = mask.flatten(2)
    flat = torch.nn.functional.pad(flat, (0, -flat.shape[-1] % _BITS)).view(*flat.shape[:2], -1, _BITS)
    return (flat.to(torch.uint8) << _shifts(mask.device)).sum(-1, dtype=torch.uint8)


def unpack(packed: Tensor, num_rows: int, num_columns: int) -> Tensor:
    """Undo ``pack``."""
    bits = (packed.unsqueeze(-1) >> _shifts(packed.device)) & 1
    flat = bits.flatten(2)[..., : num_rows * num_columns]
    return flat.reshape(*flat.shape[:2], num_rows, num_columns).bool()


def _shifts(device: torch.device) -> Tensor:
    return torch.arange(_BITS, dtype=torch.uint8, device=device)
