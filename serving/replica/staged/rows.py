"""Rows of a batch that travel on their own and meet in any other batch.

A runner's state is a tree (tuples, lists, dicts) of tensors with the rows first, and of plain values, the same for all
rows that may meet. The rows of one run share its tensors (``Batch``); a ``Row`` is a number in one. Regrouping is one
gather per tensor, and none for a whole batch in order.

A batch is freed when its last row is dropped, so ``Row.nbytes`` divides the bytes of the whole batch among the rows
that still hold it: the sum over live rows is what is really held.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.inputs import Inputs


def stacked(rows: Sequence[Inputs]) -> Any:
    """What a runner gets of rows of equal shapes: a tensor, or one by name."""
    whole: Sequence[Any] = rows
    if isinstance(rows[0], Mapping):
        return {name: torch.from_numpy(np.stack([row[name] for row in whole])) for name in rows[0]}
    return torch.from_numpy(np.stack(whole))


class _Hole:
    """Where a tensor was taken out of a tree."""


_HOLE = _Hole()


class Batch:
    """The state after one run. ``holders`` counts its rows that are still alive; ``tensors`` are the tree's leaves."""

    __slots__ = ("holders", "nbytes", "num_rows", "outline", "tensors")

    def __init__(self, state: Any, num_rows: int) -> None:
        self.tensors: list[Tensor] = []
        self.outline = _mapped(state, Tensor, self._take_out)
        self.num_rows = num_rows
        self.holders = 0
        self.nbytes = sum(tensor.untyped_storage().nbytes() for tensor in self.tensors)
        if any(tensor.ndim == 0 or tensor.shape[0] != num_rows for tensor in self.tensors):
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in self.tensors)
            raise RuntimeError(f"state tensors of shapes {shapes} do not have {num_rows} rows first")

    def _take_out(self, tensor: Tensor) -> _Hole:
        self.tensors.append(tensor)
        return _HOLE

    def rows(self) -> list[Row]:
        """One ``Row`` each, in order."""
        return [Row(self, index) for index in range(self.num_rows)]


class Row:
    """One row between two runs. Drop the last reference to free it; belongs to one thread."""

    __slots__ = ("batch", "index")

    def __init__(self, batch: Batch, index: int) -> None:
        self.batch = batch
        self.index = index
        batch.holders += 1

    def __del__(self) -> None:
        self.batch.holders -= 1

    @property
    def nbytes(self) -> int:
        """This row's share of the memory that it keeps alive; grows as others leave the same batch."""
        return -(-self.batch.nbytes // self.batch.holders)


def gather(rows: Sequence[Row]) -> Any:
    """State with these rows, in order.

    Raises:
        RuntimeError: rows of states that differ in more than their tensors.
    """
    parts = [_picked(batch, [row.index for row in run]) for batch, run in groupby(rows, key=lambda row: row.batch)]
    outline = rows[0].batch.outline
    if len(parts) > 1 and any(row.batch.outline != outline for row in rows):
        raise RuntimeError("rows of different states cannot share a batch")
    tensors = iter(parts[0] if len(parts) == 1 else map(torch.cat, zip(*parts, strict=True)))
    return _mapped(outline, _Hole, lambda hole: next(tensors))


def copied(rows: Sequence[Row]) -> list[Row]:
    """The same rows in storage of their own, so that dropping the old ones frees the rest of their batches."""
    return Batch(_mapped(gather(rows), Tensor, torch.clone), len(rows)).rows()


def _picked(batch: Batch, rows: list[int]) -> list[Tensor]:
    first, count = rows[0], len(rows)
    if rows == list(range(first, first + count)):
        return batch.tensors if count == batch.num_rows else [t[first : first + count] for t in batch.tensors]
    if not batch.tensors:
        return []
    index = torch.tensor(rows, device=batch.tensors[0].device)
    return [tensor.index_select(0, index) for tensor in batch.tensors]


def _mapped(tree: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """The tree with each leaf of a kind changed, the leaves in a fixed order."""
    if isinstance(tree, kind):
        return change(tree)
    if isinstance(tree, tuple | list):
        return type(tree)([_mapped(item, kind, change) for item in tree])
    if isinstance(tree, dict):
        return {key: _mapped(value, kind, change) for key, value in tree.items()}
    return tree
