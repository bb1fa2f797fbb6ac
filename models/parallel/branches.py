"""The guidance axis: of the rows of a batch, one branch on one rank, the other on another.

Legend: B rows, the two branches of each request next to each other; B/2 rows of this rank.
"""

from __future__ import annotations

from torch import Tensor

from models.parallel.collectives import all_gather
from models.parallel.groups import Group


def own_rows(x: Tensor, cfg: Group) -> Tensor:
    """This rank's branch of every request. (B, ...) -> (B/2, ...), a view; all of it with a degree of 1.

    Raises: ValueError: if the rows are not in pairs.
    """
    if len(x) % cfg.size:
        raise ValueError(
            f"a batch of {len(x)} rows has no two branches for each request; without guidance use a cfg degree of 1"
        )
    return x[cfg.rank :: cfg.size]


def all_rows(x: Tensor, cfg: Group) -> Tensor:
    """The inverse, on every rank. (B/2, ...) -> (B, ...)."""
    branches = all_gather(x, [len(x)] * cfg.size, cfg)
    return branches.view(cfg.size, *x.shape).transpose(0, 1).flatten(0, 1)
