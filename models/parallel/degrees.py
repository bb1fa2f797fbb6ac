"""How many ranks each axis has, and which rank of the world stands where."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

AXES = ("expert", "cfg", "ring", "ulysses")


@dataclass(frozen=True, kw_only=True)
class ParallelDegrees:
    """Ranks along each axis for one request.

    A world of more ranks is cut into equal *instances*, each of which can run a request of its own. The order of
    ranks, slowest first, is instance, expert, cfg, ring, ulysses: neighbours in the world, which are usually the best
    connected, exchange the most (all-to-all).

    ``expert``: ranks that share the rows of a batch and the experts of each layer: see
    ``models.methods.experts.parallel``.
    """

    ulysses: int = 1
    ring: int = 1
    cfg: int = 1
    expert: int = 1

    def __post_init__(self) -> None:
        for axis in AXES:
            degree = getattr(self, axis)
            if degree < 1:
                raise ValueError(f"{axis} degree is {degree}; it must be at least 1")
        if self.cfg > 2:
            raise ValueError(f"cfg degree is {self.cfg}; guidance has two branches, so it is 1 or 2")

    @property
    def sequence(self) -> int:
        """Ranks that share the tokens of one sequence."""
        return self.ulysses * self.ring

    @property
    def total(self) -> int:
        """Ranks of one instance."""
        return self.sequence * self.cfg * self.expert

    def num_instances(self, world_size: int) -> int:
        """Instances in ``world_size`` ranks. Raises ValueError, with the equation, when they do not come out even."""
        if world_size < 1 or world_size % self.total:
            expert = f" * expert ({self.expert})" if self.expert > 1 else ""
            raise ValueError(
                f"ulysses ({self.ulysses}) * ring ({self.ring}) * cfg ({self.cfg}){expert} = {self.total} ranks "
                f"do not divide a world of {world_size}; choose degrees whose product does"
            )
        return world_size // self.total

    def coordinates(self, rank: int) -> dict[str, int]:
        """Place of a world rank on each axis, and its instance."""
        rest, ulysses = divmod(rank, self.ulysses)
        rest, ring = divmod(rest, self.ring)
        rest, cfg = divmod(rest, self.cfg)
        instance, expert = divmod(rest, self.expert)
        return {"instance": instance, "expert": expert, "cfg": cfg, "ring": ring, "ulysses": ulysses}

    def members(self, axis: str, rank: int) -> tuple[int, ...]:
        """World ranks that share the ``axis`` (one of ``AXES``, or "sequence") with ``rank``, in order."""
        along = {"ulysses", "ring"} if axis == "sequence" else {axis}
        mine = self.coordinates(rank)
        first = rank - rank % self.total
        others = ((other, self.coordinates(other)) for other in range(first, first + self.total))
        return tuple(other for other, place in others if all(place[a] == mine[a] for a in mine if a not in along))

    def check_heads(self, num_heads: int) -> None:
        """Raises ValueError when attention heads cannot be dealt out evenly."""
        check_heads(num_heads, self.ulysses)


def check_heads(num_heads: int, ulysses: int) -> None:
    """Raises ValueError when ``ulysses`` ranks cannot have equally many of ``num_heads`` heads."""
    if num_heads % ulysses:
        raise ValueError(
            f"attention has {num_heads} heads, which the ulysses degree {ulysses} does not divide; "
            f"use a divisor of {num_heads} and give the other ranks to the ring axis"
        )


def narrower(degrees: ParallelDegrees) -> tuple[ParallelDegrees, ...]:
    """What a request may have where all ranks together have ``degrees``: fewer heads' ranks, or all; ascending. Experts
    that are dealt out need every rank."""
    if degrees.expert > 1:
        return (degrees,)
    fewer = [ParallelDegrees(ulysses=n) for n in range(1, degrees.ulysses + 1) if degrees.ulysses % n == 0]
    return tuple(dict.fromkeys((*fewer, degrees)))


def degrees_of_clip(allowed: Sequence[ParallelDegrees], num_tokens: int, min_tokens_per_rank: int) -> ParallelDegrees:
    """The most ranks of ``allowed``, ascending, that leave each its least share of the tokens; else the fewest."""
    enough = [one for one in allowed if num_tokens >= one.total * min_tokens_per_rank]
    return enough[-1] if enough else allowed[0]


def degrees_for(num_ranks: int, num_heads: int, *, guided: bool) -> ParallelDegrees:
    """Degrees that use all of ``num_ranks`` with the least to exchange.

    Branches of guidance first (they exchange one output a step), then as many heads as divide, then the ring.
    """
    cfg = 2 if guided and num_ranks % 2 == 0 else 1
    ulysses = math.gcd(num_ranks // cfg, num_heads)
    return ParallelDegrees(ulysses=ulysses, ring=num_ranks // cfg // ulysses, cfg=cfg)
