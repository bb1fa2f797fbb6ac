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

**Alike.** Where only units of one batch key may be taken together (``take_alike``), the same bound holds with l the
most that a tenant is charged *in one call*. The tenant with the smallest tag leads; others come in by their tags, until
one has nothing of that key: nobody who stands further on than that one comes in, and v stays there. Places that are
left go to those who are in. So v is still the smallest tag of all that wait, and a tenant comes in with its tag at v
and leaves at most l / w further on: the proof above, with a call in place of a choice. While all units that wait have
one key, nobody is passed over, and l is one unit's charge.

**Held back.** ``take_alike`` may also go on past tenants that have nothing of the key, as far as ``slack`` beyond the
first of them. v stays at the first one, so the same proof holds with ``l_i / w_i + slack`` in place of ``l_i / w_i``:
that is how far beyond v a tenant can stand.

**Corrected.** What a unit really cost is known later (``correct``), and moves the tag by the difference, also to below
v, which itself never falls. Let W_i count corrections as well, and e_i be the most that those of units in flight at one
time come to, upwards and downwards together. Then the bound holds with l + e in place of l. *Proof.* When v last moved,
tag_i was at v or above. Since then it has fallen by no more than the credits of units that were in flight at that time:
those of later ones are no larger than their charges. And between two turns it rises by what corrections add. So
``v - credits / w_i <= tag_i <= v + (l_i + additions) / w_i``; subtract as above.

**Elsewhere.** What another queue served to the tenant (another model of the same gateway) is charged here too, once,
with the next unit that comes (``Waiting.elsewhere_j``), if others wait here then: nobody owes anything for what nobody
else wanted. It is charged before the tenant is lifted to v, so that it counts against what others were served
meanwhile. It moves the tag to ``v + C_i`` at most, where C_i is ``TURNS_BEHIND`` charges of that unit over the weight,
so that nobody is held back for good. Let W_i count it as well, as far as it moved the tag of a tenant that waits. Then
``|W_i / w_i - W_j / w_j| <= m_i + m_j`` with ``m = max(l / w, C)``, and as above with corrections. *Proof.* The tag
rises by a charge, from v to ``v + l_i / w_i`` at most, or by work elsewhere, to ``v + C_i`` at most, and v never falls;
below, nothing changes. Subtract as above. As long as nobody reaches C, W counts all that a tenant was served anywhere.

Differs from the paper: inside a tenant units go by urgency, not by arrival; the corrections; and work elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from heapq import heapify, heappop, heappush, heapreplace
from itertools import islice
from types import MappingProxyType
from typing import Final, Generic, Protocol, TypeAlias, TypeVar

from schedulers.ordered_queue import OrderedQueue


class Waiting(Protocol):
    """What the queue reads of a unit."""

    tenant: str
    deadline_s: float
    joules: float
    #: Units of equal key may be taken together (``take_alike``); None: only alone.
    batch_key: Hashable
    #: Inside a tenant the smallest goes first.
    rank: tuple[float, float]
    #: Unique among all units; breaks ties.
    number: int
    #: Joules that its tenant was served by other queues since its last unit came here; 0 once they are charged.
    elsewhere_j: float


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
TURNS_BEHIND: Final = 16.0
"""Work elsewhere holds a tenant back by so many of its own charges at most."""
_FEW = 2
"""Even parts of the places that a tenant has few for (``take``): arrivals come in clumps."""
_ANY = object()
"""A batch key that is still open."""
_LOOK = 4
"""Units of a tenant that are looked at for one of a certain key, by places."""


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

    ``weights`` may change: what a tenant adds and is charged from then on counts by the new one.

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
        #: Tenants that have something waiting.
        self._num_waiting = 0
        #: Batch key -> units of it that wait.
        self._num_of_key: dict[Hashable, int] = {}

    def __len__(self) -> int:
        return self._num_units

    def __iter__(self) -> Iterator[UnitT]:
        for flow in self._flows.values():
            for entry in flow.units:
                yield entry[3]

    def first(self) -> UnitT:
        """The unit that ``take(1)`` would return. Raises IndexError when empty."""
        self._drop_stale()
        return self._heap[0][2].units.first()[3]

    def add(self, unit: UnitT) -> None:
        """Let a unit wait; its tenant is charged ``unit.joules`` when it is taken."""
        flow = self._flows.get(unit.tenant)
        if flow is None:
            flow = self._flow(unit.tenant)
            flow.tag = 0.0
        flow.weight = self._weights.get(unit.tenant, 1.0)
        if unit.elsewhere_j:
            self._charge_elsewhere(flow, unit)
        if not flow.units.num_entries:
            flow.tag = max(flow.tag, self._virtual)
            self._list(flow)
            self._num_waiting += 1
        first, second = unit.rank
        flow.units.add((first, second, unit.number, unit))
        flow.waiting_j += unit.joules
        self._num_units += 1
        key = unit.batch_key
        self._num_of_key[key] = self._num_of_key.get(key, 0) + 1

    def _charge_elsewhere(self, flow: _Flow[UnitT], unit: UnitT) -> None:
        joules, unit.elsewhere_j = unit.elsewhere_j, 0.0
        if self._num_units == flow.units.num_entries:
            return  # nobody else waits
        furthest = self._virtual + TURNS_BEHIND * unit.joules / flow.weight
        flow.tag = max(flow.tag, min(flow.tag + joules / flow.weight, furthest))
        if flow.units.num_entries:
            self._list(flow)

    @property
    def num_tenants(self) -> int:
        """Who has something waiting."""
        return self._num_waiting

    def num_of(self, tenant: str) -> int:
        """What a tenant has waiting."""
        flow = self._flows.get(tenant)
        return 0 if flow is None else flow.units.num_entries

    def num_alike(self, unit: UnitT) -> int:
        """How many wait that may be taken together with this one, itself counted if it waits here."""
        return 1 if unit.batch_key is None else self._num_of_key.get(unit.batch_key, 0)

    def take(
        self, max_units: int, earliest_deadline_s: float = -math.inf, few_deadline_s: float | None = None
    ) -> tuple[list[UnitT], list[UnitT]]:
        """Remove the next ``max_units`` units that are not late, and the late ones that were met on the way.

        Late means a deadline before ``earliest_deadline_s``; before ``few_deadline_s``, if that is given, for one of
        several tenants that has few waiting, no more than twice an even part of the places. Nobody is charged for what
        is late, so that a tenant with a long queue does not lose its share to what expired in it.
        """
        units: list[UnitT] = []
        late: list[UnitT] = []
        heap, num_left = self._heap, self._num_units
        deadline_s = earliest_deadline_s
        deadlines_s = (
            None if few_deadline_s is None else self._deadlines(max_units, earliest_deadline_s, few_deadline_s)
        )
        while num_left and max_units:
            tag, number, flow = heap[0]
            queue = flow.units
            if flow.listed_tag != tag or not queue.num_entries:
                self._drop_stale()
                continue
            if deadlines_s is not None:
                deadline_s = deadlines_s(flow)
            unit = queue.take_first()[3]
            num_left -= 1
            joules = unit.joules
            flow.waiting_j -= joules
            if unit.deadline_s < deadline_s:
                late.append(unit)
            else:
                units.append(unit)
                max_units -= 1
                if tag > self._virtual:
                    self._virtual = tag
                tag += joules / flow.weight
            flow.tag = tag
            if queue.num_entries:
                flow.listed_tag = tag
                heapreplace(heap, (tag, number, flow))
            else:
                flow.listed_tag = -math.inf
                heappop(heap)
                self._num_waiting -= 1
        self._num_units = num_left
        self._forget_keys(units)
        if late:
            self._forget_keys(late)
        return units, late

    def take_alike(
        self,
        max_units: int,
        earliest_deadline_s: float = -math.inf,
        *,
        key: Hashable = _ANY,
        fits: Callable[[UnitT, list[UnitT]], bool] | None = None,
        slack: float = 0.0,
        look: int | None = None,
        few_deadline_s: float | None = None,
    ) -> tuple[list[UnitT], list[UnitT]]:
        """As ``take``, but only units of one batch key: of ``key``, or of that which the first one has.

        ``fits``: whether a unit may join those that are taken already; one that may not will not do so later either.
        ``slack``: how far, in joules over weight, tenants that have none may be passed over. ``look``: how many units
        of a tenant are looked at; some for each place by default. See the module for what becomes of the bound.
        O(tenants that are let in, times places).
        """
        if fits is None and len(self._num_of_key) == 1 and None not in self._num_of_key:
            num_places = max_units if key is _ANY or key in self._num_of_key else 0
            return self.take(num_places, earliest_deadline_s, few_deadline_s)
        few_s = earliest_deadline_s if few_deadline_s is None else few_deadline_s
        deadlines_s = self._deadlines(max_units, earliest_deadline_s, few_s)
        choice = _Choice(self, max_units, deadlines_s, key, fits, slack, look or _LOOK * max_units)
        choice.make()
        return choice.units, choice.late

    def take_late(self, late: list[UnitT], max_units: int) -> list[UnitT]:
        """Of units that were met as late, give some a turn after all: by the tags of their tenants, of each the last.

        They are charged. v moves along as far as nobody who still waits stands before it.
        """
        by_flow: dict[_Flow[UnitT], list[UnitT]] = {}
        for unit in late:
            by_flow.setdefault(self._flows[unit.tenant], []).append(unit)
        turns = [(flow.tag, flow.number, flow) for flow in by_flow]
        heapify(turns)
        units: list[UnitT] = []
        while turns and len(units) < max_units:
            tag, number, flow = turns[0]
            self._drop_stale()
            if not self._heap or tag <= self._heap[0][0]:
                self._virtual = max(self._virtual, tag)
            unit = by_flow[flow].pop()
            units.append(unit)
            flow.tag += unit.joules / flow.weight
            if flow.units:
                self._list(flow)
            if by_flow[flow]:
                heapreplace(turns, (flow.tag, number, flow))
            else:
                heappop(turns)
        return units

    def _deadlines(
        self, max_units: int, earliest_deadline_s: float, few_deadline_s: float
    ) -> Callable[[_Flow[UnitT]], float]:
        """For one call: the earliest deadline of a tenant's units, by what it had waiting when it was first met."""
        few = _FEW * max_units // self._num_waiting if self._num_waiting > 1 else 0
        found: dict[_Flow[UnitT], float] = {}

        def deadline_s(flow: _Flow[UnitT]) -> float:
            if flow not in found:
                found[flow] = few_deadline_s if flow.units.num_entries <= few else earliest_deadline_s
            return found[flow]

        return deadline_s

    def _pick(self, flow: _Flow[UnitT], unit: UnitT) -> None:
        """Remove a unit and charge its tenant."""
        flow.tag += unit.joules / flow.weight
        self._remove(flow, unit)
        if flow.units:
            self._list(flow)

    def _remove(self, flow: _Flow[UnitT], unit: UnitT) -> None:
        flow.units.remove(_entry(unit))
        flow.waiting_j -= unit.joules
        self._num_units -= 1
        self._num_waiting -= not flow.units.num_entries
        self._forget_keys([unit])

    def _forget_keys(self, units: list[UnitT]) -> None:
        counts = self._num_of_key
        if units and len(counts) == 1:
            key = units[0].batch_key
            counts[key] -= len(units)
            if not counts[key]:
                del counts[key]
            return
        for unit in units:
            key = unit.batch_key
            counts[key] -= 1
            if not counts[key]:
                del counts[key]

    def remove(self, unit: UnitT) -> None:
        """Remove one unit from anywhere, without a charge.

        Raises:
            KeyError: if the unit is not in the queue.
        """
        self._remove(self._flows[unit.tenant], unit)

    def promote(self, unit: UnitT) -> None:
        """Put a unit first in its tenant, behind older ones that were promoted; between tenants nothing changes.

        Raises:
            KeyError: if the unit is not in the queue.
        """
        self.move(unit, (-math.inf, unit.number))

    def move(self, unit: UnitT, rank: tuple[float, float]) -> None:
        """Give a unit another place in its tenant.

        Raises:
            KeyError: if the unit is not in the queue.
        """
        units = self._flows[unit.tenant].units
        units.remove(_entry(unit))
        unit.rank = rank
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
        if flow.units.num_entries and flow.listed_tag != flow.tag:  # as ``_list``: a slice asks for each of its tenants
            flow.listed_tag = flow.tag
            heappush(self._heap, (flow.tag, flow.number, flow))

    def _list(self, flow: _Flow[UnitT]) -> None:
        if flow.listed_tag != flow.tag:
            flow.listed_tag = flow.tag
            heappush(self._heap, (flow.tag, flow.number, flow))

    def _drop_stale(self) -> None:
        heap = self._heap
        while heap and (heap[0][0] != heap[0][2].listed_tag or not heap[0][2].units.num_entries):
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


class _Choice(Generic[UnitT]):
    """Units of one batch key, chosen fairly: one call of ``FairQueue.take_alike``."""

    def __init__(
        self,
        queue: FairQueue[UnitT],
        max_units: int,
        deadlines_s: Callable[[_Flow[UnitT]], float],
        key: Hashable,
        fits: Callable[[UnitT, list[UnitT]], bool] | None,
        slack: float,
        look: int,
    ) -> None:
        self._queue = queue
        self._max_units = max_units
        self._deadlines_s = deadlines_s
        self._key = key
        self._fits = fits
        self._slack = slack
        self._look = look
        self.units: list[UnitT] = []
        self.late: list[UnitT] = []
        #: Of each tenant that was looked at, the units that have not been.
        self._ahead: dict[_Flow[UnitT], Iterator[UnitT]] = {}

    def make(self) -> None:
        """Let tenants in by their tags; then give what is left to those who are in."""
        queue = self._queue
        inside: dict[_Flow[UnitT], None] = {}
        passed: list[_Flow[UnitT]] = []
        first_passed = math.inf
        while queue._num_units and not self._is_full():
            queue._drop_stale()
            if not queue._heap or queue._heap[0][0] > first_passed + self._slack:
                break
            tag, _, flow = queue._heap[0]
            if self._advance(flow):
                queue._virtual = max(queue._virtual, min(tag, first_passed))
                inside[flow] = None
            elif flow.units:
                first_passed = min(first_passed, tag)
                flow.listed_tag = -math.inf  # out of the way, for now
                passed.append(flow)
        while inside and not self._is_full():
            flow = min(inside, key=lambda flow: (flow.tag, flow.number))
            if not self._advance(flow):
                del inside[flow]
        for flow in passed:
            if flow.units:
                queue._list(flow)

    def _is_full(self) -> bool:
        return len(self.units) >= (1 if self._key is None else self._max_units)

    def _advance(self, flow: _Flow[UnitT]) -> bool:
        """Take the tenant's next unit that may join, if there is one."""
        if flow not in self._ahead:
            self._ahead[flow] = iter([entry[3] for entry in islice(flow.units, self._look)])
        for unit in self._ahead[flow]:
            if self._key is not _ANY and unit.batch_key != self._key:
                continue
            if self._fits is not None and not self._fits(unit, self.units):
                continue
            if unit.deadline_s < self._deadlines_s(flow):
                self._queue._remove(flow, unit)
                self.late.append(unit)
                continue
            self._key = unit.batch_key
            self._queue._pick(flow, unit)
            self.units.append(unit)
            return True
        return False
