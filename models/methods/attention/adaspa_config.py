"""When AdaSpa searches, and how sparse it makes attention.

Source: AdaSpa, arXiv:2502.21079 (no official code found). Differs from the paper: steps count from 0; at most
half of the heads become sparser, so that the sets never overlap; for sparsity below 1/3 both sets change by less, so
that neither leaves [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

PAPER_STEPS = 50
PAPER_SEARCHES = (9, 29)  # steps 10 and 30 of 50, counted from 1


@dataclass(frozen=True, kw_only=True)
class AdaSpaConfig:
    """``sparsity`` is the mean share of key blocks left out. Steps up to and with the first search are dense.

    ``num_text_tokens`` at the end of the sequence are seen by, and see, everything. A head that keeps more than
    ``recall_threshold`` of its mass may be sparser, as long as another may be denser.

    Raises: ValueError: a number out of range.
    """

    sparsity: float = 0.8
    block_tokens: int = 64
    search_steps: tuple[int, ...] = PAPER_SEARCHES
    num_text_tokens: int = 0
    head_adaptive: bool = True
    recall_threshold: float = 0.8

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity is {self.sparsity}; need 0 or more, below 1")
        if self.block_tokens < 1:
            raise ValueError(f"block_tokens is {self.block_tokens}; need at least 1 (published: 64)")
        steps = self.search_steps
        if not steps or steps[0] < 0 or any(later <= earlier for earlier, later in pairwise(steps)):
            raise ValueError(f"search_steps are {steps}; need at least one, from 0 on, each later than the one before")
        if self.num_text_tokens < 0:
            raise ValueError(f"num_text_tokens is {self.num_text_tokens}; need 0 or more")
        if not 0 <= self.recall_threshold <= 1:
            raise ValueError(f"recall_threshold is {self.recall_threshold}; need 0 to 1")

    @property
    def num_warmup_steps(self) -> int:
        """Dense steps; the last of them is the first search."""
        return self.search_steps[0] + 1

    @property
    def head_step(self) -> float:
        """How much sparser the best heads are, and denser the worst: (1 - s) / 2 as published, at most s."""
        return min((1 - self.sparsity) / 2, self.sparsity)

    def predicted_bytes(self, num_layers: int, num_tokens: int, num_heads: int, batch: int, branches: int = 1) -> int:
        """Most that one request keeps: packed masks of blocks, and softmax denominators until the last search."""
        blocks = num_blocks(num_tokens, self.block_tokens)
        per_head = packed_bytes(blocks, blocks) + (4 * num_tokens if len(self.search_steps) > 1 else 0)
        return branches * num_layers * batch * num_heads * per_head


def num_blocks(num_tokens: int, block_tokens: int) -> int:
    """Blocks that hold all tokens.

    Raises: ValueError: no tokens, or blocks of none.
    """
    if num_tokens < 1 or block_tokens < 1:
        raise ValueError(f"{num_tokens} tokens in blocks of {block_tokens}; both must be at least 1")
    return -(-num_tokens // block_tokens)


def packed_bytes(num_rows: int, num_columns: int) -> int:
    """Bytes of one head's packed mask: a bit for each pair of blocks."""
    return -(-num_rows * num_columns // 8)


def searches_for(num_steps: int) -> tuple[int, ...]:
    """The published searches scaled to another number of denoising steps.

    Raises: ValueError: fewer than 1 step.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; need at least 1")
    scaled = (max(0, round((step + 1) * num_steps / PAPER_STEPS) - 1) for step in PAPER_SEARCHES)
    return tuple(sorted(set(scaled)))
