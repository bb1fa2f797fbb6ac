"""Units of many tenants: fair between tenants by what their work costs, most urgent first inside each.

Start-time fair queueing (P. Goyal, H. M. Vin, H. Cheng, "Start-time fair queueing: a scheduling algorithm for
integrated services packet switching networks", IEEE/ACM Transactions on Networking 5(5), 1997, theorem 1). A tenant's
*tag* is where its next unit starts in virtual time. The tenant with the smallest tag goes next, virtual time v moves to
that tag, and the tag moves on by the unit's charge over the tenant's weight. A tenant that begins to wait starts at
``max(v, its last tag)``: what it did not use while it had nothing to do, it has not saved up.

**Bound.** Let W_i be what tenant i was charged in an interval in which tenants i and j always had something waiting, w
their weights and l their largest charges. Then ``|W_i / w_i - W_j / w_j| <= l_i / w_i + l_j / w_j``.

*Proof.* While i waits, ``v <= tag_i <= v + l_i / w_i``. Below: at every choice v becomes the smallest tag of all that
wait, and a tenant that begins to wait starts at v or later. Above: tag_i moves only when i is chosen, from v to at most
``v + l_i / w_i``, and v never falls; a tenant that comes back does so at v or at its last tag. A charge moves tag_i by
just W_i / w_i. So over an interval in which v moves by d, ``d - l_i / w_i <= W_i / w_i <= d + l_i / w_i``, and the same
holds for j. Subtract. The order inside a tenant plays no part.

Differs from the paper: inside a tenant units go by urgency, not by arrival, and what is known better later is corrected
(``correct``), which moves the bound by the correction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from heapq import heappop, heappush, heapreplace
from types import MappingProxyType
from typing import Final, Generic, Protocol, TypeAlias, TypeVar

from schedulers.ordered_queue import OrderedQueue


class Waiting(Protocol):
    """What the queue reads of a unit."""

    tenant: str
    deadline_s: float
    joules: float
    #: Inside a tenant the smallest goes first.
    rank: tuple[float, float]
    #: Unique among all units; breaks ties.
    number: int


Weights: TypeAlias = Mapping[str, float]
"""What each tenant's share is in proportion to; 1 for one that is not in it."""
EQUAL: Final[Weights] = MappingProxyType({})


def checked(weights: Weights) -> Weights:
    """Raises: ValueError: a weight is not finite and positive."""
    for tenant, weight in weights.items():
        if not 0.0 < weight < math.inf:
            raise ValueError(f"the weight of tenant {tenant!r} is {weight}; need a finite number > 0")
    return weights


UnitT = TypeVar("UnitT", bound=Waiting)
_MAX_FLOWS = 4096


def _entry(unit: UnitT) -> tuple[float, float, int, UnitT]:
    first, second = unit.rank
    return (first, second, unit.number, unit)


class _Flow(Generic[UnitT]):
    """One tenant. ``tag``: where its next unit starts, in joules over weight. ``listed_tag``: of its valid entry in
    the heap, ``-inf`` without one. ``waiting_j``: charges that wait."""

    __slots__ = ("listed_tag", "number", "tag", "units", "waiting_j", "weight")

    def __init__(self, tag: float, number: int, weight: float) -> None:
        self.tag = tag
        self.listed_tag = -math.inf
        self.number = number
        self.weight = weight
        self.units: OrderedQueue[tuple[float, float, int, UnitT]] = OrderedQueue()
        self.waiting_j = 0.0


def _reach(flow: _Flow[UnitT]) -> float:
    """Where the flow would stand if all that waits were taken."""
    return flow.tag + flow.waiting_j / flow.weight


class FairQueue(Generic[UnitT]):
    """Units in fair order. Adding, removing and taking are O(log n); ``least_urgent`` looks at every tenant.

    A tenant leaves its tag behind until ``rest``; of more than ``_MAX_FLOWS`` tenants the idle ones are forgotten.

    Raises:
        ValueError: a weight is not finite and positive.
    """

    def __init__(self, weights: Weights = EQUAL) -> None:
        self._weights = checked(weights)
        self._flows: dict[str, _Flow[UnitT]] = {}
        #: (tag, flow number, flow) of those that wait; an entry whose tag is not its flow's ``listed_tag``, or whose
        #: flow has nothing waiting, is stale.
        self._heap: list[tuple[float, int, _Flow[UnitT]]] = []
        self._virtual = 0.0
        self._num_flows = 0
        self._num_units = 0

    def __len__(self) -> int:
        return self._num_units

    def __iter__(self) -> Iterator[UnitT]:
        for flow in self._flows.values():
            for entry in flow.units:
                yield entry[3]

    def first(self) -> UnitT:
        """The unit that ``take(1)`` would return. Raises IndexError when empty."""
        return self._front().units.first()[3]

    def add(self, unit: UnitT) -> None:
        """Let a unit wait; its tenant is charged ``unit.joules`` when it is taken."""
        flow = self._flow(unit.tenant)
        if not flow.units:
            flow.tag = max(flow.tag, self._virtual)
            self._list(flow)
        flow.units.add(_entry(unit))
        flow.waiting_j += unit.joules
        self._num_units += 1

    def take(self, max_units: int, earliest_deadline_s: float = -math.inf) -> tuple[list[UnitT], list[UnitT]]:
        """Remove the next ``max_units`` units that are not late, and the late ones that were met on the way.

        Late means a deadline before ``earliest_deadline_s``. Nobody is charged for what is late, so that a tenant with
        a long queue does not lose its share to what expired in it.
        """
        units: list[UnitT] = []
        late: list[UnitT] = []
        heap, num_left = self._heap, self._num_units
        while num_left and len(units) < max_units:
            tag, number, flow = heap[0]
            queue = flow.units
            if flow.listed_tag != tag or not queue:
                self._drop_stale()
                continue
            unit = queue.take_first()[3]
            num_left -= 1
            flow.waiting_j -= unit.joules
            if unit.deadline_s < earliest_deadline_s:
                late.append(unit)
            else:
                units.append(unit)
                self._virtual = tag
                tag += unit.joules / flow.weight
            flow.tag = tag
            if queue:
                flow.listed_tag = tag
                heapreplace(heap, (tag, number, flow))
            else:
                flow.listed_tag = -math.inf
                heappop(heap)
        self._num_units = num_left
        return units, late

    def take_fitting(self, max_units: int, fits: Callable[[UnitT], bool], taken: list[UnitT]) -> None:
        """Remove units that ``fits`` lets in and append them to ``taken``, one by one.

        In fair order, until a tenant has nothing that fits: nobody who stands further on than that one is let in.
        Places that are left go to more units of those that are in already. So the bound holds with l the largest charge
        of a tenant *in one call*: v is still the smallest tag of all that wait. O(tenants + units).
        """
        limit = math.inf
        flows = [flow for flow in self._flows.values() if flow.units]
        inside: list[_Flow[UnitT]] = []
        while flows and len(taken) < max_units:
            flow = min(flows, key=lambda flow: (flow.tag, flow.number))
            if flow.tag > limit:
                break
            unit = next((entry[3] for entry in flow.units if fits(entry[3])), None)
            if unit is not None:
                self._virtual = flow.tag
                self._take(flow, unit, taken)
                if flow not in inside:
                    inside.append(flow)
            elif flow.units:
                limit = min(limit, flow.tag)
            if unit is None or not flow.units:
                flows.remove(flow)
        for flow in inside:
            for unit in [entry[3] for entry in flow.units]:
                if len(taken) < max_units and fits(unit):
                    self._take(flow, unit, taken)

    def _take(self, flow: _Flow[UnitT], unit: UnitT, taken: list[UnitT]) -> None:
        flow.units.remove(_entry(unit))
        flow.waiting_j -= unit.joules
        self._num_units -= 1
        flow.tag += unit.joules / flow.weight
        if flow.units:
            self._list(flow)
        taken.append(unit)

    def remove(self, unit: UnitT) -> None:
        """Remove one unit from anywhere, without a charge.

        Raises:
            KeyError: if the unit is not in the queue.
        """
        flow = self._flows[unit.tenant]
        flow.units.remove(_entry(unit))
        flow.waiting_j -= unit.joules
        self._num_units -= 1

    def promote(self, unit: UnitT) -> None:
        """Put a unit first in its tenant, behind older ones that were promoted; between tenants nothing changes.

        Raises:
            KeyError: if the unit is not in the queue.
        """
        units = self._flows[unit.tenant].units
        units.remove(_entry(unit))
        unit.rank = (-math.inf, unit.number)
        units.add(_entry(unit))

    def victim(self, newcomer: UnitT) -> UnitT | None:
        """The unit to give up when there is no room: the last one of the tenant whose queue reaches furthest beyond its
        share. None when that would be the newcomer's tenant: nobody is put out for one who has as much waiting."""
        mine = self._flows.get(newcomer.tenant)
        tag = self._virtual if mine is None else max(mine.tag, self._virtual)
        waiting_j = newcomer.joules + (0.0 if mine is None else mine.waiting_j)
        reach = tag + waiting_j / self._weights.get(newcomer.tenant, 1.0)
        others = [flow for flow in self._flows.values() if flow.units and flow is not mine]
        furthest = max(others, key=_reach, default=None)
        return None if furthest is None or _reach(furthest) <= reach else furthest.units.last()[3]

    def less_urgent(self, unit: UnitT) -> UnitT | None:
        """The last unit of the same tenant, if ``unit``, which is not here, would go before it."""
        flow = self._flows.get(unit.tenant)
        if flow is None or not flow.units or flow.units.last() < _entry(unit):
            return None
        return flow.units.last()[3]

    def correct(self, tenant: str, joules: float) -> None:
        """A unit that was taken cost so much more than its charge, or less."""
        flow = self._flows.get(tenant)
        if flow is None:
            return  # forgotten
        flow.tag += joules / flow.weight
        if flow.units:
            flow.tag = max(flow.tag, self._virtual)
            self._list(flow)

    def _list(self, flow: _Flow[UnitT]) -> None:
        if flow.listed_tag != flow.tag:
            flow.listed_tag = flow.tag
            heappush(self._heap, (flow.tag, flow.number, flow))

    def _front(self) -> _Flow[UnitT]:
        self._drop_stale()
        return self._heap[0][2]

    def _drop_stale(self) -> None:
        heap = self._heap
        while heap and (heap[0][0] != heap[0][2].listed_tag or not heap[0][2].units):
            tag, _, flow = heappop(heap)
            if flow.listed_tag == tag:
                flow.listed_tag = -math.inf

    def _flow(self, tenant: str) -> _Flow[UnitT]:
        flow = self._flows.get(tenant)
        if flow is None:
            if len(self._flows) >= _MAX_FLOWS:
                self._flows = {name: flow for name, flow in self._flows.items() if flow.units}
            self._num_flows += 1
            weight = self._weights.get(tenant, 1.0)
            flow = self._flows[tenant] = _Flow(self._virtual, self._num_flows, weight)
        return flow

    def rest(self) -> None:
        """Nothing waits and nothing that was taken runs any more: as in the paper, everybody starts anew."""
        self._flows.clear()
        self._heap.clear()
        self._virtual = 0.0
