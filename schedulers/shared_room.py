"""Room for requests of all models, which tenants share: who may come in, who waits, and who is refused.

While there is room, everybody comes in. Once it is full, a tenant may hold and wait for its share of it, by weight
among the tenants that are here, and for one place at least: beyond that it is refused, and up to that it waits. So a
tenant that fills the room refuses itself, and a newcomer waits for the next place that comes free, not for a queue. Who
waits goes in the order of ``schedulers.fair_queue``: tenants by the joules that they were served, by whatever model;
inside a tenant by ``schedulers.urgency``. Everybody passes through that queue, also where nobody waits: all is charged.

A request is charged as its model's requests took of late, and corrected when it leaves (its prediction, back) and when
it is settled (what it really took), which may be sooner or later.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable
from typing import Final

from schedulers.fair_queue import EQUAL, FairQueue, Weights, checked
from schedulers.running_mean import RunningMean
from schedulers.types import Priority
from schedulers.urgency import queue_key

_LEAST_J: Final = 1e-6
"""Even a request predicted to cost nothing takes a turn."""
_FEW: Final = 16
"""Places that are held against nobody."""
_WEIGHT: Final = 0.1
"""Of the newest request in what a model's requests take."""


class Place:
    """One request that wants to come in. ``deadline_s``: on the clock of ``now_s``."""

    def __init__(
        self,
        tenant: str,
        model: str = "",
        *,
        now_s: float = 0.0,
        deadline_s: float = math.inf,
        priority: Priority = Priority.NORMAL,
    ) -> None:
        self.tenant = tenant
        self.model = model
        self.deadline_s = deadline_s
        self.rank = (queue_key(priority, now_s, deadline_s, 0.0), 0.0)
        self.batch_key: Hashable = ()
        self.elsewhere_j = 0.0
        self.joules = _LEAST_J
        self.number = 0


class SharedRoom:
    """``places``: requests that may be in at a time. ``weights``: of tenants.

    Raises:
        ValueError: ``places`` is below 1, or a weight not finite and positive.
    """

    def __init__(self, places: int, weights: Weights = EQUAL) -> None:
        if places < 1:
            raise ValueError(f"places is {places}; need at least 1")
        self.places = places
        self._weights = checked(weights)
        self._queue: FairQueue[Place] = FairQueue(weights)
        self._num_in = self._num_asked = 0
        #: Of each tenant that is here: places that it holds and waits for.
        self._num_here: dict[str, int] = {}
        #: What a request of a model takes, in joules.
        self._usual_j: defaultdict[str, RunningMean] = defaultdict(lambda: RunningMean(_WEIGHT))

    @property
    def num_in(self) -> int:
        """Places that are taken."""
        return self._num_in

    @property
    def num_waiting(self) -> int:
        """Requests that wait for one."""
        return len(self._queue)

    @property
    def is_full(self) -> bool:
        """Whether one who came now would not come in at once."""
        return self._num_in >= self.places

    def num_here(self, tenant: str) -> int:
        """Places that a tenant holds and waits for."""
        return self._num_here.get(tenant, 0)

    def share(self, tenant: str) -> float:
        """Places that a tenant may hold and wait for once the room is full: one at least."""
        mine = self._weights.get(tenant, 1.0)
        others = sum(self._weights.get(other, 1.0) for other in self._num_here if other != tenant)
        return max(1.0, self.places * mine / (mine + others))

    def places_for(self, tenant: str, places: int) -> int:
        """Of so many places, those that a tenant may hold and wait for now: its share, or all that the others leave. A
        few in any case, up to its share of the whole room, since arrivals come in clumps."""
        others = sum(self._num_here.values()) - self.num_here(tenant)
        share = self.share(tenant)
        return max(min(_FEW, int(share)), int(places * share / self.places), places - others)

    def ask(self, place: Place) -> bool | None:
        """Want a place: True, it is given; None, wait for it; False, the tenant has its share already.

        A place that is given is given back by ``leave``; one that waits is given by a later ``leave`` of somebody, or
        taken back by ``give_up``.
        """
        here = self._num_here.get(place.tenant, 0)
        if self.is_full and (here + 1 > self.share(place.tenant) or len(self._queue) >= self.places):
            return False
        self._num_asked += 1
        place.number = self._num_asked
        place.joules = self._usual_j[place.model].value or _LEAST_J
        self._num_here[place.tenant] = here + 1
        self._queue.add(place)
        return True if self._next() is not None else None

    def give_up(self, place: Place) -> None:
        """One that waits does not any longer. It is not charged."""
        self._queue.remove(place)
        self._gone(place)

    def leave(self, place: Place) -> Place | None:
        """One that was in leaves. Returns whose turn it is now, if anybody waits: that one is in."""
        self._num_in -= 1
        self._queue.correct(place.tenant, -place.joules)
        self._gone(place)
        if not self._num_in and not self._queue:
            self._queue.rest()
        return self._next()

    def settle(self, tenant: str, model: str, joules: float) -> None:
        """A request really took so much."""
        self._usual_j[model].observe(max(_LEAST_J, joules))
        self._queue.correct(tenant, joules)

    def _next(self) -> Place | None:
        if self.is_full or not self._queue:
            return None
        self._num_in += 1
        return self._queue.take(1)[0][0]

    def _gone(self, place: Place) -> None:
        self._num_here[place.tenant] -= 1
        if not self._num_here[place.tenant]:
            del self._num_here[place.tenant]
