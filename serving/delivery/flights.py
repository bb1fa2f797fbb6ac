"""Equal work is run once: who comes while it is under way waits for its result, and takes over if there is none.

request A leads x ----------------------> lands x(result)
request B finds x under way, waits ------> has the result
request C finds x under way, waits ------> A leaves or fails: C, or B, leads x anew
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

T = TypeVar("T")
Urgency: TypeAlias = tuple[int, float]
"""Rank and deadline: smaller is more urgent."""


@dataclass(eq=False, slots=True)
class Flight(Generic[T]):
    """One piece of work under way. ``result`` is set once: to None if its leader leaves or has nothing to share."""

    urgency: Urgency
    result: asyncio.Future[T | None]


class Flights(Generic[T]):
    """What is under way on this gateway, by name. Use from one event loop."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, Flight[T]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def join(
        self, names: Sequence[Hashable | None], urgency: Urgency
    ) -> tuple[dict[int, Flight[T] | None], dict[int, Flight[T]]]:
        """Sort the places of ``names`` into those to lead and those to wait for.

        Nobody waits for what is less urgent than itself, and nobody for what has no name. Each flight that is led must
        be landed, and before any other is waited for: two requests may each lead what the other wants.
        """
        led: dict[int, Flight[T] | None] = {}
        followed: dict[int, Flight[T]] = {}
        for place, name in enumerate(names):
            flight = self._flights.get(name) if name is not None else None
            if flight is not None and flight.urgency <= urgency:
                followed[place] = flight
            elif name is None:
                led[place] = None
            else:
                led[place] = self._flights[name] = Flight(urgency, asyncio.get_running_loop().create_future())
        return led, followed

    def land(self, name: Hashable | None, flight: Flight[T] | None, result: T | None) -> None:
        """End a flight; whoever waits for it goes on."""
        if flight is None:
            return
        if self._flights.get(name) is flight:  # a more urgent one may have taken the name
            del self._flights[name]
        if not flight.result.done():
            flight.result.set_result(result)


async def result_of(flight: Flight[T]) -> T | None:
    """Wait for a flight. Leaving does not disturb the others that wait."""
    return await asyncio.shield(flight.result)
