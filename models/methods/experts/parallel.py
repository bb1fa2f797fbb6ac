"""Experts over ranks: each rank holds the weights of its slots, and tokens travel to the replica that was chosen.

    counts   all-gather: how many tokens each rank has for each expert; all that must be known before the tokens go
    choice   which replicas of each expert share its tokens this time: every rank comes to the same from the same counts
    there    all-to-all of the tokens, as many as there are; none is dropped
    experts  those of this rank, on the tokens of all
    back     all-to-all; each rank sums what comes of its own

All replicas of an expert are alike, so that neither choice nor placement changes what comes out. A new placement comes
in two phases: ``fetch`` brings the weights that a rank lacks, beside steps that run, and ``switch`` puts them in place
between two steps.

Legend: T tokens of this rank, K experts a token, W width, F hidden units, E experts, R ranks, S slots of a layer on all
ranks, of which rank r has those from r S / R on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from models.contract import Choose, Move, Slots
from models.methods.experts.dispatch import in_order
from models.methods.experts.grouped import grouped_swiglu
from models.parallel.collectives import all_gather, all_to_all, exchange
from models.parallel.groups import Group


class Packed(Protocol):
    """Experts of a layer: ``gate_up`` (E, 2F, W), ``down`` (E, W, F)."""

    gate_up: nn.Parameter
    down: nn.Parameter


_Piece: TypeAlias = tuple[int, int]
"""A slot, and a number of tokens."""


def every_replica(slots: Sequence[int], tokens: Sequence[int], num_ranks: int) -> Sequence[Sequence[int]]:
    """All of them, whatever there is to do."""
    replicas: list[list[int]] = [[] for _ in tokens]
    for slot, expert in enumerate(slots):
        replicas[expert].append(slot)
    return replicas


def check_slots(slots: Slots, num_layers: int, num_experts: int, num_ranks: int) -> None:
    """Pass a placement that can be held. Raises: ValueError."""
    if len(slots) != num_layers:
        raise ValueError(f"{len(slots)} layers were placed; there are {num_layers}")
    for layer, held in enumerate(slots):
        if len(held) % num_ranks or len(held) != len(slots[0]):
            raise ValueError(f"layer {layer} has {len(held)} slots, which {num_ranks} ranks cannot share")
        if set(held) != set(range(num_experts)):
            raise ValueError(f"layer {layer} has not each of its {num_experts} experts in a slot")


def _check_moves(old: Slots, new: Slots, moves: Sequence[Move]) -> None:
    """Pass those that make one placement of the other. Raises: ValueError."""
    after = [list(held) for held in old]
    for layer, expert, source, slot in moves:
        if old[layer][source] != expert:
            raise ValueError(f"slot {source} of layer {layer} has expert {old[layer][source]}, not {expert}, to give")
        after[layer][slot] = expert
    if any(tuple(held) != tuple(wanted) for held, wanted in zip(after, new, strict=True)):
        raise ValueError("the moves do not lead to the placement")


def _dealt(counts: Sequence[Sequence[int]], chosen: Sequence[Sequence[int]]) -> list[list[_Piece]]:
    """Of each rank, how many of its tokens for each expert in turn go to which slot: an expert's tokens, those of the
    first rank first, are cut into as many even runs as it has slots.

    ``counts`` (R, E).
    """
    dealt: list[list[_Piece]] = [[] for _ in counts]
    for expert, slots in enumerate(chosen):
        total, start = sum(row[expert] for row in counts), 0
        bounds = [total * run // len(slots) for run in range(len(slots) + 1)]
        for row, of_rank in zip(counts, dealt, strict=True):
            stop = start + row[expert]
            for slot, (first, end) in zip(slots, pairwise(bounds), strict=True):
                if (n := min(stop, end) - max(start, first)) > 0:
                    of_rank.append((slot, n))
            start = stop
    return dealt


def _repeated(pieces: Sequence[_Piece]) -> Tensor:
    """The slot of each token."""
    slots, lengths = (torch.tensor([piece[i] for piece in pieces], dtype=torch.int64) for i in (0, 1))
    return slots.repeat_interleave(lengths)


class _Weights(NamedTuple):
    """Of one expert, for a slot of this rank: (2F, W) and (W, F)."""

    layer: int
    slot: int
    gate_up: Tensor
    down: Tensor


@dataclass(slots=True)
class _Fetched:
    slots: Slots
    weights: Sequence[_Weights]


class ExpertRanks:
    """The experts of all layers, as one rank of ``group`` holds them. ``beside``: the same ranks, for ``fetch``.

    Raises: ValueError: slots that do not hold every expert, or do not come out even.
    """

    def __init__(
        self, layers: Sequence[Packed], slots: Slots, group: Group, beside: Group, choose: Choose | None = None
    ) -> None:
        self.num_experts = len(layers[0].gate_up)
        check_slots(slots, len(layers), self.num_experts, group.size)
        self.group = group
        self.choose = choose or every_replica
        self.slots = slots
        self.share = len(slots[0]) // group.size
        self.layers = [ExpertsOnRank(self, layer, held) for layer, held in zip(layers, slots, strict=True)]
        self._beside = beside
        self._fetched: _Fetched | None = None

    @property
    def first_slot(self) -> int:
        """Of this rank."""
        return self.group.rank * self.share

    def fetch(self, slots: Slots, moves: Sequence[Move]) -> None:
        """Get what this rank will lack, and keep it until ``switch``; at any time, on every rank. What was fetched
        before and not put in place is dropped. ``moves``: from the present placement to ``slots``.

        Raises: ValueError: they cannot be done; RuntimeError: a rank does not answer. Nothing has changed then.
        """
        check_slots(slots, len(self.layers), self.num_experts, self.group.size)
        _check_moves(self.slots, slots, moves)
        self._fetched = None
        weights = [one for layer in range(len(self.layers)) for one in self._fetch(layer, moves)]
        self._fetched = _Fetched(slots, weights)

    def _fetch(self, layer: int, moves: Sequence[Move]) -> list[_Weights]:
        """Of one layer: what is under way at a time is no more than that."""
        rank, share, first = self.group.rank, self.share, self.first_slot
        packed = self.layers[layer].gate_up, self.layers[layer].down
        sends, receives, fetched = [], [], []
        for _, _, source, slot in (move for move in moves if move[0] == layer):
            is_from_here, is_for_here = source // share == rank, slot // share == rank
            if is_from_here and is_for_here:
                fetched.append(_Weights(layer, slot - first, *(one[source - first].clone() for one in packed)))
            elif is_for_here:
                arriving = [torch.empty(one.shape[1:], dtype=one.dtype) for one in packed]
                receives += [(one, source // share) for one in arriving]
                fetched.append(_Weights(layer, slot - first, *arriving))
            elif is_from_here:
                sends += [(one[source - first].cpu(), slot // share) for one in packed]
        exchange(sends, receives, self._beside)
        return fetched

    @torch.no_grad()
    def switch(self) -> None:
        """Put in place what was fetched; on every rank between the same two steps. Raises: RuntimeError: nothing."""
        if self._fetched is None:
            raise RuntimeError("no placement was fetched")
        fetched, self._fetched = self._fetched, None
        for layer, slot, gate_up, down in fetched.weights:
            self.layers[layer].gate_up[slot].copy_(gate_up)
            self.layers[layer].down[slot].copy_(down)
        self.slots = fetched.slots
        for packed, held in zip(self.layers, fetched.slots, strict=True):
            packed.slots = held


class ExpertsOnRank(nn.Module):
    """One layer, called as on a single rank: all experts of this rank's tokens, wherever they are.

    ``gate_up`` (S / R, 2F, W), ``down`` (S / R, W, F).
    """

    def __init__(self, ranks: ExpertRanks, whole: Packed, slots: Sequence[int]) -> None:
        super().__init__()
        self._ranks = ranks
        self.slots = slots
        own = list(slots[ranks.first_slot :][: ranks.share])
        self.gate_up = nn.Parameter(whole.gate_up.detach()[own], requires_grad=False)
        self.down = nn.Parameter(whole.down.detach()[own], requires_grad=False)

    def forward(self, tokens: Tensor, ids: Tensor, weights: Tensor, shared: nn.Module | None = None) -> Tensor:
        """``tokens`` (T, W), ``ids`` and ``weights`` (T, K) -> (T, W); T may differ from rank to rank, and be 0.
        ``shared``: what all tokens pass besides, on every rank."""
        ranks = self._ranks
        group, share = ranks.group, ranks.share
        counts = all_gather(
            torch.bincount(ids.flatten(), minlength=ranks.num_experts)[None], [1] * group.size, group
        ).tolist()
        chosen = ranks.choose(self.slots, [sum(of_ranks) for of_ranks in zip(*counts, strict=True)], group.size)
        dealt = _dealt(counts, chosen)
        send = [sum(n for slot, n in dealt[group.rank] if slot // share == rank) for rank in range(group.size)]
        coming = [
            sorted((slot - ranks.first_slot, n) for slot, n in one if slot // share == group.rank) for one in dealt
        ]
        receive = [sum(n for _, n in one) for one in coming]

        by_expert = ids.flatten().argsort(stable=True)
        order = by_expert[_repeated(dealt[group.rank]).to(ids.device).argsort(stable=True)]
        dispatch = in_order(order, order.new_tensor(send).cumsum(0), weights)
        arrived = all_to_all(dispatch.spread(tokens), send, receive, group)()
        slots = _repeated([piece for one in coming for piece in one])
        done = self._run(arrived, slots.to(ids.device))
        back = all_to_all(done, receive, send, group)()
        mixed = dispatch.combine(back)
        return mixed if shared is None else mixed + shared(tokens)

    def _run(self, tokens: Tensor, slots: Tensor) -> Tensor:
        if not len(tokens):
            return tokens
        return grouped_swiglu(tokens, self.gate_up, self.down, slots[:, None], tokens.new_ones(len(tokens), 1))
