"""Waiting samples of many tenants: fair between tenants, earliest deadline first inside each.

Self-clocked fair queueing (S. J. Golestani, "A self-clocked fair queueing scheme for broadband applications", INFOCOM
1994): each arrival buys its tenant a *turn* whose tag lies one charge behind the tenant's previous turn, or behind the
tag being served now for a tenant that had nothing waiting. Turns are served in tag order. Differs from the paper: a
turn belongs to the tenant and not to the sample, so the tenant's most urgent sample uses it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from schedulers.ordered_queue import OrderedQueue
from schedulers.types import Priority


class Waiting(Protocol):
    """What the queue reads of a sample."""

    tenant: str
    priority: Priority
    deadline_s: float
    #: Unique among all samples; breaks ties.
    number: int


SampleT = TypeVar("SampleT", bound=Waiting)


def _entry(sample: SampleT) -> tuple[int, float, int, SampleT]:
    """Inside a tenant: higher priority first, then the earlier deadline, then the earlier arrival."""
    return (-sample.priority, sample.deadline_s, sample.number, sample)


class _Flow(Generic[SampleT]):
    """One tenant that has samples waiting; it has exactly as many turns as samples."""

    __slots__ = ("samples", "tenant", "turns")

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self.samples: OrderedQueue[tuple[int, float, int, SampleT]] = OrderedQueue()
        #: (tag, turn number, this flow), ascending; the same tuples as in the queue's ``_turns``.
        self.turns: deque[tuple[float, int, _Flow[SampleT]]] = deque()


class FairQueue(Generic[SampleT]):
    """Samples in fair order; every operation is O(log n)."""

    def __init__(self) -> None:
        #: All flows' turns in tag order, one per waiting sample.
        self._turns: OrderedQueue[tuple[float, int, _Flow[SampleT]]] = OrderedQueue()
        #: Tenants with something waiting, and no others: a tenant leaves no state behind.
        self._flows: dict[str, _Flow[SampleT]] = {}
        #: Tag of the turn served last, in seconds of service; never falls.
        self._served_tag = 0.0
        self._num_returned = 0

    def __len__(self) -> int:
        return len(self._turns)

    def __iter__(self) -> Iterator[SampleT]:
        for flow in self._flows.values():
            for entry in flow.samples:
                yield entry[3]

    def first(self) -> SampleT:
        """The sample that ``take(1)`` would return. Raises IndexError when empty."""
        return self._turns.first()[2].samples.first()[3]

    def next_tag(self, tenant: str, charge_s: float) -> float:
        """Tag that a sample of ``tenant`` would get now."""
        flow = self._flows.get(tenant)
        # A flow's turns wait, so their tags are not below the one served last.
        return (self._served_tag if flow is None else flow.turns[-1][0]) + charge_s

    def last_tag(self) -> float:
        """Largest tag: the turn that waits longest. Raises IndexError when empty."""
        return self._turns.last()[0]

    def add(self, sample: SampleT, charge_s: float) -> None:
        """Add a sample; ``charge_s`` is the predicted service it uses."""
        tag = self.next_tag(sample.tenant, charge_s)
        flow = self._flow(sample.tenant)
        turn = (tag, sample.number, flow)
        flow.samples.add(_entry(sample))
        flow.turns.append(turn)
        self._turns.add(turn)

    def put_back(self, sample: SampleT) -> None:
        """Return a sample that ``take`` gave; its tenant gets a turn before all that wait."""
        flow = self._flow(sample.tenant)
        self._num_returned += 1
        turn = (self._served_tag, -self._num_returned, flow)
        flow.samples.add(_entry(sample))
        flow.turns.appendleft(turn)
        self._turns.add(turn)

    def take(self, max_samples: int, earliest_deadline_s: float = -math.inf) -> tuple[list[SampleT], list[SampleT]]:
        """Remove the samples of the next ``max_samples`` turns: those on time, tenant by tenant, and those late.

        Late means a deadline before ``earliest_deadline_s``. A late sample does not use up a turn: its tenant's next
        one takes its place, so that a tenant with a long queue does not lose its share to what expired in it.
        """
        turns = self._turns.take(max_samples)
        num_turns: dict[_Flow[SampleT], int] = {}
        for _, _, flow in turns:
            flow.turns.popleft()
            num_turns[flow] = num_turns.get(flow, 0) + 1
        samples: list[SampleT] = []
        late: list[SampleT] = []
        for flow, count in num_turns.items():
            self._take_of(flow, count, earliest_deadline_s, samples, late)
            if not flow.turns:
                del self._flows[flow.tenant]
        if turns:
            self._served_tag = turns[-1][0]
        return samples, late

    def _take_of(
        self, flow: _Flow[SampleT], count: int, earliest_deadline_s: float, samples: list[SampleT], late: list[SampleT]
    ) -> None:
        while count:
            taken = [entry[3] for entry in flow.samples.take(count)]
            missed = [sample for sample in taken if sample.deadline_s < earliest_deadline_s]
            if not missed:
                samples += taken
                return
            samples += [sample for sample in taken if sample.deadline_s >= earliest_deadline_s]
            late += missed
            count = min(len(missed), len(flow.turns))
            for _ in range(count):
                self._turns.remove(flow.turns.pop())

    def remove(self, sample: SampleT) -> None:
        """Remove one sample from anywhere; its tenant gives back its last turn.

        Raises:
            KeyError: if the sample is not in the queue.
        """
        flow = self._flows[sample.tenant]
        flow.samples.remove(_entry(sample))
        self._turns.remove(flow.turns.pop())
        if not flow.turns:
            del self._flows[sample.tenant]

    def least_urgent(self) -> SampleT:
        """The sample to give up when there is no room: the last one of the tenant that is furthest over its share."""
        return self._turns.last()[2].samples.last()[3]

    def _flow(self, tenant: str) -> _Flow[SampleT]:
        flow = self._flows.get(tenant)
        if flow is None:
            flow = self._flows[tenant] = _Flow(tenant)
        return flow
