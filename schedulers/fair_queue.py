"""Waiting samples of many tenants: fair between tenants, earliest deadline first inside each.

Self-clocked fair queueing (S. J. Golestani, "A self-clocked fair queueing scheme for broadband applications", INFOCOM
1994): each arrival buys its tenant a *turn* whose tag lies one charge behind the tenant's previous turn, or behind the
tag being served now for a tenant that had nothing waiting. Turns are served in tag order. Differs from the paper: a
turn belongs to the tenant and not to the sample, so the tenant's most urgent sample uses it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from schedulers.ordered_queue import OrderedQueue


class Waiting(Protocol):
    """What the queue reads of a sample."""

    tenant: str
    #: (priority class, deadline_s, arrival number): unique, smaller is served earlier inside the tenant.
    order: tuple[int, float, int]


SampleT = TypeVar("SampleT", bound=Waiting)


class _Flow(Generic[SampleT]):
    """One tenant that has samples waiting; it has exactly as many turns as samples."""

    __slots__ = ("samples", "tags")

    def __init__(self) -> None:
        self.samples: OrderedQueue[tuple[tuple[int, float, int], SampleT]] = OrderedQueue()
        #: Tags of this tenant's turns, ascending.
        self.tags: deque[tuple[float, int]] = deque()


class FairQueue(Generic[SampleT]):
    """Samples in fair order; every operation is O(log n)."""

    def __init__(self) -> None:
        #: (tag, turn number, flow), one per waiting sample.
        self._turns: OrderedQueue[tuple[float, int, _Flow[SampleT]]] = OrderedQueue()
        #: Tenants with something waiting, and no others: a tenant leaves no state behind.
        self._flows: dict[str, _Flow[SampleT]] = {}
        #: Tag of the turn served last: seconds of service, only ever grows.
        self._served_tag = 0.0
        #: Turn numbers break ties: bought ones count up from 1, returned ones down from -1.
        self._num_turns = 0
        self._num_returned = 0

    def __len__(self) -> int:
        return len(self._turns)

    def __iter__(self) -> Iterator[SampleT]:
        for flow in self._flows.values():
            for _, sample in flow.samples:
                yield sample

    def first(self) -> SampleT:
        """The sample that ``take(1)`` would return. Raises IndexError when empty."""
        return self._turns.first()[2].samples.first()[1]

    def next_tag(self, tenant: str, charge_s: float) -> float:
        """Tag that a sample of ``tenant`` would get now."""
        flow = self._flows.get(tenant)
        return (self._served_tag if flow is None else max(self._served_tag, flow.tags[-1][0])) + charge_s

    def last_tag(self) -> float:
        """Largest tag: the turn that waits longest. Raises IndexError when empty."""
        return self._turns.last()[0]

    def add(self, sample: SampleT, charge_s: float) -> None:
        """Add a sample; ``charge_s`` is the predicted service it uses, divided by the weight of its priority."""
        tag = self.next_tag(sample.tenant, charge_s)
        flow = self._flows.get(sample.tenant)
        if flow is None:
            flow = self._flows[sample.tenant] = _Flow()
        self._num_turns += 1
        flow.samples.add((sample.order, sample))
        flow.tags.append((tag, self._num_turns))
        self._turns.add((tag, self._num_turns, flow))

    def put_back(self, sample: SampleT) -> None:
        """Return a sample that ``take`` gave; its tenant gets a turn before all that wait."""
        flow = self._flows.get(sample.tenant)
        if flow is None:
            flow = self._flows[sample.tenant] = _Flow()
        self._num_returned += 1
        turn = (self._served_tag, -self._num_returned)
        flow.samples.add((sample.order, sample))
        flow.tags.appendleft(turn)
        self._turns.add((*turn, flow))

    def take(self, max_samples: int) -> list[SampleT]:
        """Remove and return up to ``max_samples``, fairest first."""
        turns = self._turns.take(max_samples)
        samples = []
        for _, _, flow in turns:
            flow.tags.popleft()
            sample = flow.samples.take_first()[1]
            samples.append(sample)
            if not flow.tags:
                del self._flows[sample.tenant]
        if turns:
            self._served_tag = max(self._served_tag, turns[-1][0])
        return samples

    def remove(self, sample: SampleT) -> None:
        """Remove one sample from anywhere; its tenant gives back its last turn.

        Raises:
            KeyError: if the sample is not in the queue.
        """
        flow = self._flows[sample.tenant]
        flow.samples.remove((sample.order, sample))
        tag, number = flow.tags.pop()
        self._turns.remove((tag, number, flow))
        if not flow.tags:
            del self._flows[sample.tenant]

    def least_urgent(self) -> SampleT:
        """The sample to give up when there is no room: the last one of the tenant that is furthest over its share."""
        return self._turns.last()[2].samples.last()[1]
