"""The process groups of one rank, explicit and passed as arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeAlias

import torch.distributed as dist

from models.parallel.degrees import ParallelDegrees
from models.parallel.meter import CommunicationMeter

_AXES = ("sequence", "ulysses", "ring", "cfg", "expert")
_Made: TypeAlias = Mapping[tuple[int, ...], dist.ProcessGroup]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Ranks along one axis, seen from one of them. ``process_group`` is None when there is only one."""

    process_group: dist.ProcessGroup | None = None
    rank: int = 0
    ranks: tuple[int, ...] = (0,)
    meter: CommunicationMeter = field(default_factory=CommunicationMeter)

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ValueError(f"rank {self.rank} is not one of the {self.size} of its group")
        if (self.process_group is None) != (self.size == 1):
            raise ValueError(f"a group of {self.size} ranks needs {'no' if self.size == 1 else 'a'} process group")

    @property
    def size(self) -> int:
        """Ranks along the axis."""
        return len(self.ranks)

    def neighbour(self, step: int) -> int:
        """World rank ``step`` places further round the ring."""
        return self.ranks[(self.rank + step) % self.size]


@dataclass(frozen=True, kw_only=True)
class SequenceGroups:
    """Groups of one rank for one choice of degrees; all count into one meter.

    ``beside``: the ranks of ``expert`` once more, always over gloo, for what travels while steps go on: what two
    threads send over one group gets mixed up, and NCCL wants its groups to take turns.
    """

    degrees: ParallelDegrees
    instance: int
    sequence: Group
    ulysses: Group
    ring: Group
    cfg: Group
    expert: Group
    beside: Group
    meter: CommunicationMeter

    def close(self) -> None:
        """Give the process groups back. The world stays."""
        for group in {id(g): g for g in self._process_groups()}.values():
            dist.destroy_process_group(group)

    def _process_groups(self) -> list[dist.ProcessGroup]:
        axes = (self.sequence, self.ulysses, self.ring, self.cfg, self.expert, self.beside)
        return [axis.process_group for axis in axes if axis.process_group is not None]


def single_rank(meter: CommunicationMeter | None = None) -> SequenceGroups:
    """World size 1, for which torch.distributed need not be initialised."""
    return _groups(ParallelDegrees(), 0, {}, {}, meter or CommunicationMeter())


def make_groups(
    degrees: ParallelDegrees, *, timeout_s: float = 600.0, meter: CommunicationMeter | None = None
) -> SequenceGroups:
    """Groups of this rank in the initialised torch.distributed world.

    Every rank of the world must call it with the same degrees, in the same order among other such calls.

    Raises: ValueError: if the degrees do not divide the world (the message has the equation).
    """
    initialised = dist.is_initialized()
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if initialised else (0, 1)
    degrees.num_instances(world_size)
    members = (degrees.members(axis, other) for axis in _AXES for other in range(world_size))
    made = {
        ranks: dist.new_group(list(ranks), timeout=timedelta(seconds=timeout_s))
        for ranks in dict.fromkeys(members)
        if len(ranks) > 1
    }
    experts = dict.fromkeys(degrees.members("expert", other) for other in range(world_size))
    beside = {
        ranks: dist.new_group(list(ranks), timeout=timedelta(seconds=timeout_s), backend="gloo")
        for ranks in experts
        if len(ranks) > 1
    }
    if made and dist.get_backend() == "gloo":
        dist.barrier()  # gloo connects at once: a rank that fails and closes now would break others' connecting
    return _groups(degrees, rank, made, beside, meter or CommunicationMeter())


def _groups(
    degrees: ParallelDegrees, rank: int, made: _Made, beside: _Made, meter: CommunicationMeter
) -> SequenceGroups:
    def group(axis: str, made: _Made) -> Group:
        ranks = degrees.members(axis, rank)
        return Group(process_group=made.get(ranks), rank=ranks.index(rank), ranks=ranks, meter=meter)

    return SequenceGroups(
        degrees=degrees,
        instance=degrees.coordinates(rank)["instance"],
        meter=meter,
        beside=group("expert", beside),
        **{axis: group(axis, made) for axis in _AXES},
    )
