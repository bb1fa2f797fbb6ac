"""Staged forward: samples travel from exit to exit on their own and meet in any batch.

``begin`` takes pictures in, ``advance`` carries samples through their next exit. Nothing of a later stage is computed
before someone asks for it: exit 1 runs before feature stage 3, exit 2 before feature stage 4.

Equal to ``DynPerceiver.forward`` bit for bit when the batches are the same. When samples are regrouped, libraries may
pick other kernels for another batch size, and rounding then moves logits by about 1e-6 (tested at 1e-4).

Storage: the samples of one ``advance`` share batch tensors ("slab"); a sample is a row number in one. Regrouping is one
gather per tensor. A slab is freed when its last sample is dropped, so ``SampleState.nbytes`` divides the bytes of
the whole slab among the samples that still hold it: the sum over live samples is what is really held.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.families.dyn_perceiver.config import NUM_EXITS
from models.families.dyn_perceiver.model import DynPerceiver, State
from models.registry import ModelSpec


class _Slab:
    """Batch tensors shared by the samples of one ``advance``; ``holders`` counts samples that are still alive."""

    __slots__ = ("holders", "nbytes", "num_rows", "tensors")

    def __init__(self, tensors: State, num_rows: int) -> None:
        self.tensors = tensors
        self.num_rows = num_rows
        self.holders = num_rows
        self.nbytes = sum(tensor.untyped_storage().nbytes() for tensor in tensors)


class SampleState:
    """One sample between two exits. Drop the last reference to free it; belongs to one thread.

    ``next_exit`` is the 0-based exit it waits for; equal to the number of exits once it has passed the last.
    """

    __slots__ = ("_row", "_slab", "next_exit")

    def __init__(self, slab: _Slab, row: int, next_exit: int) -> None:
        self._slab = slab
        self._row = row
        self.next_exit = next_exit

    def __del__(self) -> None:
        self._slab.holders -= 1

    @property
    def nbytes(self) -> int:
        """This sample's share of the memory that it keeps alive; grows as others leave the same storage."""
        return -(-self._slab.nbytes // self._slab.holders)

    def __repr__(self) -> str:
        return f"SampleState(next_exit={self.next_exit}, row={self._row})"


class StagedDynPerceiver:
    """Runs a ``DynPerceiver`` in stages. Keeps no samples itself: whoever holds a ``SampleState`` holds the memory."""

    def __init__(self, model: DynPerceiver, spec: ModelSpec) -> None:
        self.num_exits = NUM_EXITS
        self.device = model.latent.device
        self._model = model.eval()
        self._spec = spec
        self._normalise = _Normalise(spec, self.device)

    @torch.inference_mode()
    def begin(self, images: Tensor | NDArray[np.uint8]) -> list[SampleState]:
        """Take in uint8 images (B, S, S, 3); they are copied, so the caller may reuse the buffer.

        Raises:
            ValueError: wrong dtype or shape.
        """
        pixels = torch.as_tensor(images)
        side = self._spec.input_size
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (side, side, 3):
            raise ValueError(
                f"expected uint8 images of shape (B, {side}, {side}, 3), got {pixels.dtype} {tuple(pixels.shape)}; "
                f"run models.families.dyn_perceiver.processor.Processor first"
            )
        copied = pixels.to(self.device, copy=True, memory_format=torch.contiguous_format)
        return _share((copied,), copied.shape[0], next_exit=0)

    @torch.inference_mode()
    def advance(self, states: Sequence[SampleState]) -> tuple[list[SampleState], Tensor]:
        """Carry samples through the exit they all wait for.

        Returns: their new states, in the same order, and the exit's logits (B, K). The old states stay valid until
        dropped. After the last exit the new states hold nothing.

        Raises:
            ValueError: no samples, samples that wait at different exits, or samples that have passed the last one.
        """
        index = _common_exit(states)
        batch = _gather(states)
        if index == 0:
            batch = (self._normalise(batch[0]),)
        state, logits = self._model.run_stage(index, batch)
        return _share(state, len(states), index + 1), logits

    @torch.inference_mode()
    def compact(self, states: Sequence[SampleState]) -> list[SampleState]:
        """Copy samples that wait at one exit into storage of their own, so that dropping ``states`` frees the rest."""
        index = _common_exit(states)
        return _share(tuple(t.clone() for t in _gather(states)), len(states), index)

    @torch.inference_mode()
    def forward_all(self, images: Tensor | NDArray[np.uint8]) -> Tensor:
        """Logits (num_exits, B, K) of every exit for uint8 images: for calibration and benchmarks."""
        states, exits = self.begin(images), []
        for _ in range(self.num_exits):
            states, logits = self.advance(states)
            exits.append(logits)
        return torch.stack(exits)


def to_input(images: Tensor, spec: ModelSpec) -> Tensor:
    """Normalise uint8 (B, S, S, 3) to float32 (B, 3, S, S), channels last in memory. What ``advance`` does first."""
    return _Normalise(spec, images.device)(images).permute(0, 3, 1, 2)


class _Normalise:
    """uint8 (B, S, S, 3) -> float32 of the same shape: one multiply-add over rows of S * 3 values.

    Whole rows, because a CPU vectorises over the last dimension and three channels do not fill a register.
    """

    def __init__(self, spec: ModelSpec, device: torch.device) -> None:
        std, mean = torch.tensor(spec.std), torch.tensor(spec.mean)
        self._scale = (1.0 / (255.0 * std)).repeat(spec.input_size).to(device)
        self._shift = (-mean / std).repeat(spec.input_size).to(device)

    def __call__(self, images: Tensor) -> Tensor:
        return torch.addcmul(self._shift, images.float().flatten(2), self._scale).view(images.shape)


def _common_exit(states: Sequence[SampleState]) -> int:
    if not states:
        raise ValueError("no samples to advance; pass at least one")
    exits = {state.next_exit for state in states}
    if len(exits) > 1:
        raise ValueError(f"samples wait at different exits {sorted(exits)}; advance one exit at a time")
    index = exits.pop()
    if index >= NUM_EXITS:
        raise ValueError(f"samples have passed the last of {NUM_EXITS} exits; nothing is left to compute")
    return index


def _share(tensors: State, num_rows: int, next_exit: int) -> list[SampleState]:
    slab = _Slab(tensors, num_rows)
    return [SampleState(slab, row, next_exit) for row in range(num_rows)]


def _gather(states: Sequence[SampleState]) -> State:
    """Batch tensors with one row per state, in order. A whole slab in order is used as it is, without a copy."""
    parts = [
        _rows(slab, [state._row for state in run])
        for slab, run in ((key, list(group)) for key, group in groupby(states, key=lambda state: state._slab))
    ]
    if len(parts) == 1:
        return parts[0]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def _rows(slab: _Slab, rows: list[int]) -> State:
    first, count = rows[0], len(rows)
    if rows == list(range(first, first + count)):
        return slab.tensors if count == slab.num_rows else tuple(t[first : first + count] for t in slab.tensors)
    index = torch.tensor(rows, device=slab.tensors[0].device)
    return tuple(t.index_select(0, index) for t in slab.tensors)
