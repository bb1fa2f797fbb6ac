"""Rows of a batch over ranks: each has a contiguous run, as even as can be, and perhaps none."""

from __future__ import annotations

import torch
from torch import Tensor

from models.parallel.collectives import all_gather
from models.parallel.groups import Group


def row_counts(num_rows: int, num_ranks: int) -> list[int]:
    """Rows of each rank; the first ones have one more where it does not come out even."""
    least, more = divmod(num_rows, num_ranks)
    return [least + (rank < more) for rank in range(num_ranks)]


def share_of(x: Tensor, group: Group) -> Tensor:
    """This rank's rows. (B, ...) -> (b, ...), a view."""
    return torch.split(x, row_counts(len(x), group.size))[group.rank]


def all_shares(x: Tensor, num_rows: int, group: Group) -> Tensor:
    """The inverse, on every rank. (b, ...) -> (B, ...)."""
    return all_gather(x, row_counts(num_rows, group.size), group)
