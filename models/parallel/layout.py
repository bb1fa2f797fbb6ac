"""Which rank holds which tokens.

Each rank has a contiguous run; when P does not divide L, the first L mod P ranks have one token more. Uneven runs
instead of padding: no kind of attention needs a mask for tokens that are not there, and none is computed.

Legend: B batch, L tokens, P ranks of the sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from models.parallel.collectives import all_gather, gather_lengths
from models.parallel.groups import Group, SequenceGroups


@dataclass(frozen=True)
class TokenSplit:
    """``num_tokens`` dealt out to ``num_ranks``."""

    num_tokens: int
    num_ranks: int

    def __post_init__(self) -> None:
        if self.num_tokens < self.num_ranks:
            raise ValueError(
                f"{self.num_tokens} tokens cannot be split over {self.num_ranks} ranks; "
                f"use a sequence degree of at most {max(self.num_tokens, 1)}"
            )

    @property
    def bounds(self) -> tuple[int, ...]:
        """First token of each rank, then the end: P + 1 numbers."""
        least, more = divmod(self.num_tokens, self.num_ranks)
        return tuple(rank * least + min(rank, more) for rank in range(self.num_ranks + 1))

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each rank; they differ by at most one."""
        return tuple(end - start for start, end in pairwise(self.bounds))

    def run(self, rank: int) -> slice:
        """Tokens of ``rank``."""
        return slice(self.bounds[rank], self.bounds[rank + 1])


def split(num_tokens: int, groups: SequenceGroups) -> TokenSplit:
    """How ``num_tokens`` are dealt out to the ranks of ``groups.sequence``."""
    return TokenSplit(num_tokens, groups.sequence.size)


def shard(tokens: Tensor, groups: SequenceGroups) -> Tensor:
    """This rank's run. (B, L, ...) -> (B, L/P, ...), a view."""
    return tokens[:, split(tokens.shape[1], groups).run(groups.sequence.rank)]


def gather(tokens: Tensor, groups: SequenceGroups, *, num_tokens: int | None = None) -> Tensor:
    """All tokens, on every rank. (B, L/P, ...) -> (B, L, ...).

    ``num_tokens`` is L; without it the ranks exchange their lengths first, which allows any, even none on some ranks.
    """
    group = groups.sequence
    lengths = lengths_of(tokens, group) if num_tokens is None else split(num_tokens, groups).lengths
    return all_gather(tokens.transpose(0, 1), lengths, group).transpose(0, 1)


def lengths_of(tokens: Tensor, group: Group) -> tuple[int, ...]:
    """Tokens, in dim 1, of each rank."""
    return gather_lengths(tokens.shape[1], group, tokens.device)
